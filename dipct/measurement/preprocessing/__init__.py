"""Preprocessing: from detector counts to the projections that a reconstruction needs."""

from dipct.measurement.preprocessing.bad_pixels import find_bad_pixels as find_bad_pixels
from dipct.measurement.preprocessing.bad_pixels import (
    interpolate_bad_pixels as interpolate_bad_pixels,
)
from dipct.measurement.preprocessing.beam_hardening import BeamHardeningFit as BeamHardeningFit
from dipct.measurement.preprocessing.beam_hardening import (
    correct_beam_hardening as correct_beam_hardening,
)
from dipct.measurement.preprocessing.beam_hardening import fit_beam_hardening as fit_beam_hardening
from dipct.measurement.preprocessing.field_of_view import field_of_view_mask as field_of_view_mask
from dipct.measurement.preprocessing.flat_field import line_integrals as line_integrals
from dipct.measurement.preprocessing.flat_field import transmission as transmission
from dipct.measurement.preprocessing.noise_level import NoiseEstimate as NoiseEstimate
from dipct.measurement.preprocessing.noise_level import estimate_noise_std as estimate_noise_std
from dipct.measurement.preprocessing.rings import remove_rings as remove_rings
from dipct.measurement.preprocessing.rotation_axis import find_rotation_axis as find_rotation_axis
