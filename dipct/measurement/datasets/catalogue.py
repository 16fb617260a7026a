"""The catalogue of public data sets."""

import difflib
from dataclasses import dataclass

from dipct.errors import ConfigurationError

CHECK_LICENCE = "CC BY 4.0 as far as known; check the record before you publish"


@dataclass(frozen=True)
class DataSet:
    """A public data set with a DOI.

    Names, sizes and checksums of its files are read from the DOI's record when it is fetched, so
    that they are always those that the authors published.

    Attributes:
        name: to fetch it by.
        title: for people.
        doi: of the record.
        licence: of the data, and how well it is known.
        description: what is in it and which files a reconstruction needs.
        default_files: files fetched unless others are asked for; empty for all of the record.
    """

    name: str
    title: str
    doi: str
    licence: str
    description: str
    default_files: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Web page of the record."""
        return f"https://doi.org/{self.doi}"


_DATA_SETS = (
    DataSet(
        name="cwi-walnut",
        title="CWI walnuts: cone-beam scans, walnut 1",
        doi="10.5281/zenodo.2686726",
        licence=CHECK_LICENCE,
        description=(
            "Der Sarkissian et al. 2019, https://doi.org/10.1038/s41597-019-0235-y. Raw "
            "projections of three source heights, 1201 angles each, with darks, flats, per-view "
            "vectors and the reference reconstruction. Unpack Walnut1.zip and give the folder."
        ),
        default_files=("Walnut1.zip",),
    ),
    DataSet(
        name="htc2022",
        title="Helsinki Tomography Challenge 2022, training data",
        doi="10.5281/zenodo.6984868",
        licence="CC BY 4.0",
        description=(
            "Fan-beam sinograms (721 views, 560 columns) of acrylic discs with holes, MATLAB "
            "files with the geometry, reference reconstructions and segmentations."
        ),
    ),
    DataSet(
        name="htc2022-test",
        title="Helsinki Tomography Challenge 2022, test data",
        doi="10.5281/zenodo.7418878",
        licence="CC BY 4.0",
        description="The discs of the challenge's seven levels, in the form of the training data.",
    ),
    DataSet(
        name="fips-lotus",
        title="FIPS lotus root",
        doi="10.5281/zenodo.1254204",
        licence=CHECK_LICENCE,
        description=(
            "Fan-beam sinogram of 120 angles with 429 columns and its sparse system matrix for "
            "128 x 128 pixels, MATLAB."
        ),
        default_files=("LotusData128.mat",),
    ),
    DataSet(
        name="fips-walnut",
        title="FIPS walnut, one slice",
        doi="10.5281/zenodo.1254206",
        licence=CHECK_LICENCE,
        description=(
            "Hamalainen et al. 2015, https://arxiv.org/abs/1502.04064. Fan-beam sinograms of 120 "
            "angles with their sparse system matrices in three sizes, MATLAB."
        ),
    ),
    DataSet(
        name="fips-walnut-3d",
        title="FIPS walnut, cone beam",
        doi="10.5281/zenodo.6986012",
        licence=CHECK_LICENCE,
        description="Cone-beam scan of a whole walnut. Large: choose files.",
    ),
    DataSet(
        name="walnut-matrix",
        title="System matrix of a slice of CWI walnut 1",
        doi="10.5281/zenodo.7282279",
        licence="not known; check the record before you publish",
        description=(
            "Sparse matrix of 60 angles and 128 columns for 501 x 501 pixels, made for "
            "https://arxiv.org/abs/2203.00479, beside other results of that work."
        ),
        default_files=("single_slice_ray_trafo_matrix_walnut1_orbit2_ass20_css6.mat",),
    ),
)


def list_data_sets() -> tuple[DataSet, ...]:
    """All data sets of the catalogue."""
    return _DATA_SETS


def find_data_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        ConfigurationError: there is none; near names are given.
    """
    by_name = {data_set.name: data_set for data_set in _DATA_SETS}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigurationError(f"There is no data set {name!r}.{hint} Known: {', '.join(by_name)}.")
