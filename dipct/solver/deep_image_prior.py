"""The Deep Image Prior for any operator: tomography, denoising, inpainting, super-resolution."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError
from dipct.generator.base import Generator
from dipct.generator.network import Network, NetworkGenerator, Precision, has_bfloat16
from dipct.generator.presets import make_network
from dipct.objective.fidelity import Fidelity
from dipct.objective.objective import DataTerm, Objective, Term, TotalVariation
from dipct.operator.base import Operator
from dipct.solver.adam import Adam, CosineDecay, WarmUp
from dipct.solver.descent import GeneratorFit, Measure
from dipct.solver.iteration import Callback, iterate
from dipct.solver.optimiser import Optimiser
from dipct.solver.selection import (
    FirstAtNoiseLevel,
    LeastMovingVariance,
    LowestObjective,
    Selection,
)
from dipct.solver.solution import IterationState, Solution

Stopping = Literal["none", "variance", "discrepancy"]

Restriction = Callable[[NetworkGenerator], Generator]
"""From a network's generator to one of fewer parameters."""

_NOISE_AMPLITUDE = 0.1
# Adam's average of squares forgets slowly by default, so that after a quiet stretch one long
# gradient makes a step that undoes hundreds.
_BETAS = (0.9, 0.99)
_CLIP = 0.1


def deep_image_prior(
    operator: Operator,
    fidelity: Fidelity,
    *,
    iterations: int = 3000,
    state: IterationState | None = None,
    every: int = 20,
    callbacks: Sequence[Callback] = (),
    **settings: object,
) -> Solution:
    """Reconstruct an image from data by a network fitted to them.

    Args:
        operator: A, from images [1 H W] to data.
        fidelity: data term, whose leading axes beyond the operator's range are a batch: every
            element gets a network of its own.
        iterations: most iterations in total.
        state: where to go on, from an earlier call with the same settings.
        every: iterations between two records.
        callbacks: called with every recorded state.
        **settings: of :func:`deep_image_prior_fit`.

    Returns:
        The solution; its value is the image, [... 1 H W].

    Raises:
        ConfigurationError: impossible settings.
        ShapeError: shapes that do not fit.
    """
    fit = deep_image_prior_fit(operator, fidelity, iterations=iterations, **settings)  # type: ignore[arg-type]
    return iterate(fit, max_iterations=iterations, state=state, every=every, callbacks=callbacks)


def deep_image_prior_fit(
    operator: Operator,
    fidelity: Fidelity,
    *,
    network: str | Network = "128",
    z: Tensor | None = None,
    tv_weight: float | Tensor = 0.0,
    isotropic: bool = False,
    iterations: int = 3000,
    learning_rate: float | Tensor = 1e-3,
    warm_up: int = 100,
    clip: float | None = _CLIP,
    betas: tuple[float, float] = _BETAS,
    decay: bool | None = None,
    loss_scale: float | None = None,
    stopping: Stopping | Selection = "none",
    window: int = 100,
    patience: int = 1000,
    precision: Precision | Literal["auto"] = "auto",
    seed: int = 0,
    initial: Tensor | None = None,
    restriction: Restriction | None = None,
    optimiser: Optimiser | None = None,
    measure: Measure | None = None,
) -> GeneratorFit:
    """Set up the fit of a network's image to data (Ulyanov et al., CVPR 2018), with TV or without.

    Minimises ``fidelity(A(G(theta))) + tv_weight TV(G(theta))`` (Baguer, Leuschner & Schmidt,
    Inverse Problems 36, 2020) by Adam. The image should be of order one; scale the operator.

    Args:
        operator: A, from images [1 H W] to data.
        fidelity: data term, with a batch of data or without.
        network: an architecture, or the name of one, see
            :func:`dipct.generator.make_network`.
        z: input, [... C H W]; default: normal numbers of standard deviation 0.1, [1 H W].
        tv_weight: lambda, zero for the plain Deep Image Prior.
        isotropic: isotropic instead of anisotropic total variation.
        iterations: how many there will be, for the decay of the learning rate.
        learning_rate: of Adam; one number or one per parameter. This and the next four do
            nothing where there is another optimiser.
        warm_up: steps over which the learning rate rises.
        clip: gradients longer than this are shortened to it.
        betas: decay of Adam's averages of the gradient and of its square.
        decay: whether it then falls to zero along a cosine; default: yes, unless stopping by
            the variance, which would fall with it.
        loss_scale: see :class:`GeneratorFit`.
        stopping: ``none`` keeps the iterate with the lowest objective; ``variance`` that of
            least moving variance and ``discrepancy`` the first at the noise level, and both
            stop there. Or a rule of your own.
        window: images in the moving variance, which begins after the warm-up.
        patience: steps after the least moving variance before stopping.
        precision: of the network's arithmetic; ``auto`` is bfloat16 where the device has it.
        seed: of the first parameters and of the input; the elements of a batch take this and
            the following numbers.
        initial: first parameters, [... P], in place of those the generator begins with.
        restriction: makes the generator that is fitted of that of the network, such as a
            :class:`dipct.generator.Subspace`.
        optimiser: in place of Adam.
        measure: see :class:`GeneratorFit`.

    Returns:
        The method, for :func:`dipct.solver.iterate`.

    Raises:
        ConfigurationError: impossible settings.
        ShapeError: shapes that do not fit.
        DeviceUnavailableError: bfloat16 asked of a device without it.
    """
    shape = operator.domain_shape
    if len(shape) != 3 or shape[0] != 1:
        raise ShapeError(f"The Deep Image Prior makes images [1 H W]; {operator!r} takes others.")
    if warm_up < 0 or iterations < 0:
        raise ConfigurationError(
            f"warm_up and iterations must be zero or more; got {warm_up}, {iterations}."
        )
    decay = stopping != "variance" if decay is None else decay
    if decay and stopping == "variance":
        raise ConfigurationError(
            "decay and stopping by the variance exclude each other: the variance of the images "
            "falls with the learning rate. Use decay=False."
        )
    if seed < 0:
        raise ConfigurationError(f"seed must be zero or more; got {seed}.")
    projections = fidelity.projections
    batch = tuple(projections.shape[: projections.ndim - len(operator.range_shape)])
    if 0 in batch:
        raise ShapeError(f"The batch of data {tuple(projections.shape)} is empty.")
    seeds = [seed + i for i in range(int(torch.Size(batch).numel()))]
    network = make_network(network) if isinstance(network, str) else network
    if z is None:
        input_shape = network.input_shape(shape[1:])
        z = torch.stack([noise_input(input_shape, one) for one in seeds]).reshape(
            *batch, *input_shape
        )
    z = z.to(projections)
    if precision == "auto":
        reduces = z.dtype == torch.float32 and has_bfloat16(z.device)
        precision = "bfloat16" if reduces else "float32"
    generator: Generator = NetworkGenerator(network, z, shape[1:], precision=precision)
    if restriction is not None:
        generator = restriction(generator)
    if initial is None:
        drawn = torch.stack([generator.initial(one) for one in seeds])
        initial = drawn.reshape(*batch, generator.n_parameters)
    terms: list[tuple[float | Tensor, Term]] = [(1.0, DataTerm(operator, fidelity))]
    terms.append((tv_weight, TotalVariation(shape, isotropic=isotropic)))
    if optimiser is None:
        schedule = CosineDecay(iterations, warm_up) if decay else WarmUp(warm_up)
        optimiser = Adam(learning_rate, schedule=schedule, clip=clip, betas=betas)
    return GeneratorFit(
        generator,
        Objective(terms),
        initial.to(projections),
        optimiser=optimiser,
        selection=_selection(stopping, window, patience, warm_up),
        loss_scale=loss_scale,
        measure=measure,
    )


def _selection(
    stopping: Stopping | Selection, window: int, patience: int, warm_up: int
) -> Selection:
    if isinstance(stopping, Selection):
        return stopping
    if stopping == "none":
        return LowestObjective()
    if stopping == "variance":
        return LeastMovingVariance(window, patience, warm_up)
    if stopping == "discrepancy":
        return FirstAtNoiseLevel()
    raise ConfigurationError(f"stopping must be none, variance or discrepancy; got {stopping!r}.")


def noise_input(shape: tuple[int, ...], seed: int) -> Tensor:
    """Input of a network: normal numbers of standard deviation 0.1.

    From another stream than the first parameters and the noise of simulated data of that seed.

    Args:
        shape: [C H W].
        seed: the same as for the parameters.
    """
    draw = np.random.default_rng([seed, 2]).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(_NOISE_AMPLITUDE * draw)
