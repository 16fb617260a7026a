"""What the figures need to know of a reconstruction."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dipct.measurement.scan import Scan


class Reconstruction(Protocol):
    """A reconstruction with its scan; ``dipct.run.Run`` is one."""

    @property
    def image(self) -> np.ndarray:
        """(H, W) or (Z, H, W), 1/length_unit of the scan."""
        ...

    @property
    def projections(self) -> np.ndarray:
        """Projections of the image, shaped like the scan's, dimensionless."""
        ...

    @property
    def scan(self) -> Scan:
        """The scan as it was reconstructed."""
        ...

    @property
    def method(self) -> str:
        """The reconstruction method."""
        ...

    @property
    def status(self) -> str:
        """Name of the outcome."""
        ...

    @property
    def iterations(self) -> int:
        """Iterations done; 0 for analytic methods."""
        ...

    @property
    def history(self) -> Mapping[str, np.ndarray]:
        """Recorded values by name, ``"iteration"`` among them."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Figures of merit by name."""
        ...
