"""Readers of public data sets; :func:`read_scan` opens whatever can be read."""

from dipct.measurement.readers.cwi_walnut import read_cwi_walnut as read_cwi_walnut
from dipct.measurement.readers.data_exchange import read_data_exchange as read_data_exchange
from dipct.measurement.readers.detect import read_scan as read_scan
from dipct.measurement.readers.fips import read_fips as read_fips
from dipct.measurement.readers.htc2022 import read_htc2022 as read_htc2022
from dipct.measurement.readers.htc2022 import read_htc2022_reference as read_htc2022_reference
