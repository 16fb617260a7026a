"""Public data sets: what there is, and fetching it by DOI."""

from dipct.measurement.datasets.catalogue import DataSet as DataSet
from dipct.measurement.datasets.catalogue import find_data_set as find_data_set
from dipct.measurement.datasets.catalogue import list_data_sets as list_data_sets
from dipct.measurement.datasets.fetch import data_folder as data_folder
from dipct.measurement.datasets.fetch import fetch_data_set as fetch_data_set
from dipct.measurement.datasets.record import RemoteFile as RemoteFile
from dipct.measurement.datasets.record import remote_files as remote_files
