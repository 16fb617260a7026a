"""The weights of the linear model that explain the data: its own fit, beside the network's."""

from dataclasses import dataclass

from torch import Tensor

from dipct.errors import ConfigurationError, ConvergenceError
from dipct.generator import Generator
from dipct.objective import DataTerm, GaussianFidelity, Objective, Term, TotalVariation
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.stored_jacobian import Report
from dipct.solver import Adam, GeneratorFit, IterationState, LastIterate, Status, iterate

# As published.
_ITERATIONS, _LEARNING_RATE, _WEIGHT_DECAY = 1000, 1e-4, 1e-6
_EVERY = 50
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """Weights that were fitted in the linear model.

    Attributes:
        weights: [W].
        gradient: length of the gradient that is left, over the lengths of those of the data and of
            everything else together: zero at the minimum.
    """

    weights: Tensor
    gradient: float


class LinearisedGenerator(Generator):
    """Images of a linear model: ``f(theta_hat) + J (w - w_hat)``.

    Args:
        model: the linear model.
    """

    def __init__(self, model: LinearisedModel) -> None:
        self._set_spaces(model.parameters, model.image.shape)
        self._jacobian, self._at_zero = model.jacobian, model.image_at_zero

    def initial(self, seed: int) -> Tensor:
        """The weights of the network, whatever the seed."""
        return self._jacobian.weights

    def _apply(self, x: Tensor) -> Tensor:
        return self._at_zero + self._jacobian(x)


def linear_weights(
    model: LinearisedModel,
    *,
    tv_weight: float = 0.0,
    isotropic: bool = False,
    iterations: int = _ITERATIONS,
    learning_rate: float = _LEARNING_RATE,
    weight_decay: float = _WEIGHT_DECAY,
    report: Report | None = None,
) -> LinearWeights:
    """Fit the weights of the linear model as those of the network were fitted.

    The network's weights minimise the loss of the network, not that of its linearisation: where
    the weights themselves are looked at, those of the linear model belong to it (Antoran et al.,
    ICML 2022, "Adapting the linearised Laplace model evidence for modern deep learning"; its
    tomography in arXiv 2203.00479, section 3.4). Minimises the mean squared residual with total
    variation and weight decay, by Adam from the network's weights: two passes an iteration.

    Args:
        model: the linear model.
        tv_weight: lambda of ``|A x - y|^2 / 2 + lambda TV(x)``, whitened; that of the
            reconstruction.
        isotropic: which total variation.
        iterations: how many.
        learning_rate: of Adam.
        weight_decay: so many times the weights are added to the gradient of the mean squared
            residual.
        report: called with iterations done and in all.

    Returns:
        The weights, wherever they have got to.

    Raises:
        ConfigurationError: no iterations, or settings that Adam refuses.
        ConvergenceError: the fit diverged.
    """
    if iterations < 1:
        raise ConfigurationError(f"iterations must be positive; got {iterations}.")
    shape = model.operator.range_shape
    # Of the image in the linear model, also where A is not linear.
    data = model.misfit.reshape(shape) + model.operator(model.image)
    fidelity = GaussianFidelity(data, model.noise_variance.sqrt().reshape(shape))
    terms: list[tuple[float, Term]] = [(1.0, DataTerm(model.operator, fidelity))]
    if tv_weight > 0:
        terms.append((tv_weight, TotalVariation(tuple(model.image.shape), isotropic=isotropic)))
    generator = LinearisedGenerator(model)
    fit = GeneratorFit(
        generator,
        Objective(terms),
        generator.initial(0),
        optimiser=Adam(learning_rate, weight_decay=weight_decay),
        # The mean squared residual, where the noise is the same everywhere.
        loss_scale=2 * float(model.noise_variance.mean()) / model.n_data,
        selection=LastIterate(),
    )

    def tell(state: IterationState) -> None:
        if report is not None:
            report(state.iteration, iterations)

    solution = iterate(fit, max_iterations=iterations, every=_EVERY, callbacks=(tell,))
    if solution.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    if solution.status is Status.DIVERGED:
        raise ConvergenceError(
            f"The weights of the linear model diverged at a learning rate of {learning_rate}; take "
            "a smaller one."
        )
    weights = solution.state.tensors["theta"]
    left = fit.loss.differentiate(weights).gradient + weight_decay * weights
    error = (model.operator(generator(weights)) - data).flatten() / model.noise_variance
    of_data = fit.loss.scale * model.to_weights(error[None])[0]
    size = of_data.norm() + (left - of_data).norm()
    return LinearWeights(weights, float(left.norm() / size.clamp(min=_TINY)))
