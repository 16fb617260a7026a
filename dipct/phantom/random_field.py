"""Seeded smooth random fields that do not depend on the resolution."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomField:
    """A sum of plane waves with random directions and phases, of mean 0 and variance 1.

    With many waves the field is close to a Gaussian one (spectral representation; Shinozuka and
    Deodatis 1991, Applied Mechanics Reviews 44(4)). Being a function of position, it is the
    same at any sampling.

    Attributes:
        wave_vectors: ``[M, 3]`` along x, y and z, rad per unit length.
        phases: ``[M]``, rad.
    """

    wave_vectors: np.ndarray
    phases: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, shortest: float, longest: float, n_waves: int = 32
    ) -> "RandomField":
        """Draw an isotropic field with wavelengths in a band.

        Args:
            rng: source of randomness.
            shortest: shortest wavelength, in unit coordinates.
            longest: longest wavelength, in unit coordinates.
            n_waves: number of plane waves.
        """
        directions = rng.standard_normal((n_waves, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        wavelengths = np.exp(rng.uniform(np.log(shortest), np.log(longest), n_waves))
        wave_vectors = 2 * np.pi * directions / wavelengths[:, None]
        return cls(wave_vectors, rng.uniform(0, 2 * np.pi, n_waves))

    def __call__(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Evaluate the field on a tensor grid.

        Args:
            z: coordinates ``[Z]``.
            y: coordinates ``[H]``.
            x: coordinates ``[W]``.

        Returns:
            Values ``[Z, H, W]``, float32.
        """
        # cos(a + b) = cos a cos b - sin a sin b turns the sum over waves into a matrix product.
        along_x, along_y, along_z = self.wave_vectors.T
        plane = along_z * z[:, None, None] + along_y * y[None, :, None] + self.phases  # [Z, H, M]
        line = along_x[:, None] * x  # [M, W]
        left = np.concatenate([np.cos(plane), -np.sin(plane)], axis=-1).astype(np.float32)
        right = np.concatenate([np.cos(line), np.sin(line)], axis=0).astype(np.float32)
        # One large product: many small ones are slow where processor cores are busy.
        values = left.reshape(len(z) * len(y), -1) @ right
        values *= np.float32(np.sqrt(2 / len(self.phases)))
        return values.reshape(len(z), len(y), len(x))
