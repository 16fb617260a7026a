"""Fits in stages that free one block after another."""

import pytest
import torch
from catalogue import F64, SmoothClassifier

from dipct.errors import ConfigurationError
from dipct.generator import ImplicitNetwork, NetworkGenerator, PixelImage, fourier_features
from dipct.objective import ClassTarget, FeatureFidelity, Objective
from dipct.operator import LOGITS, FeatureOperator
from dipct.solver import (
    Adam,
    BestValidIterate,
    FitStage,
    GeneratorFit,
    LastIterate,
    ProgressiveFit,
    iterate,
    progressive_stages,
)

SHAPE = (2, 6, 7)


@pytest.fixture(scope="module")
def psi():
    return FeatureOperator(SmoothClassifier().double(), ("norm", LOGITS), SHAPE)


@pytest.fixture(scope="module")
def generator():
    network = ImplicitNetwork(8, 6, 2, out_channels=2)
    return NetworkGenerator(network, fourier_features(SHAPE[1:], frequencies=4).double(), SHAPE[1:])


@pytest.fixture(scope="module")
def query():
    random = torch.Generator().manual_seed(0)
    return torch.rand(SHAPE, generator=random, dtype=F64)


def objective_of(psi, query, weight=0.1):
    fidelity, target = FeatureFidelity(psi, query, layers=["norm"]), ClassTarget(psi, 1)
    return lambda of_fidelity: Objective([(of_fidelity, fidelity), (weight, target)])


def stages_of(psi, generator, query, **settings):
    settings = {"weight": 1.0, "steps": 4, "learning_rate": 1e-2, **settings}
    return progressive_stages(generator, objective_of(psi, query), **settings)


def start(generator):
    return generator.initial(0).double()


def progressive(psi, generator, query, **settings):
    return ProgressiveFit(
        generator, stages_of(psi, generator, query, **settings), start(generator), LastIterate()
    )


def test_frozen_blocks_stay_as_they_are_to_the_bit(psi, generator, query):
    fit, first = progressive(psi, generator, query), start(generator)
    for stage, blocks in enumerate(
        (["layer_1"], ["layer_1", "layer_2"], [*generator.layout.blocks])
    ):
        end = iterate(fit, max_iterations=4 * (stage + 1)).state.tensors["theta"]
        free = generator.layout.mask(blocks=blocks)
        assert torch.equal(end[~free], first[~free])
        for block in blocks:
            part = generator.layout.mask(blocks=[block])
            assert not torch.equal(end[part], first[part])


def test_the_weight_of_the_fidelity_falls(psi, generator, query):
    stages = stages_of(psi, generator, query, relaxation=0.5)
    assert [stage.objective.terms[0][0] for stage in stages] == [1.0, 0.5, 0.25]
    fit = progressive(psi, generator, query, relaxation=0.5)
    history = iterate(fit, max_iterations=12, every=1).history
    assert history["stage"][:5].tolist() == [1, 1, 1, 1, 2]
    assert history["stage"][-1] == 3
    weights = (history["objective"] - 0.1 * history["class"]) / history["features"]
    assert weights[[0, 5, 10]].tolist() == pytest.approx([1.0, 0.5, 0.25])
    assert torch.allclose(history["weight of features"], weights)
    assert "weight of class" not in history


def test_elements_of_a_batch_may_have_weights_of_their_own(psi, generator, query):
    queries, weights = torch.stack([query, 1 - query]), torch.tensor([1.0, 0.25], dtype=F64)

    def fit(of, weight):
        first = start(generator).expand(*of.shape[:-3], -1).contiguous()
        stages = stages_of(psi, generator, of, weight=weight, relaxation=0.5)
        return iterate(
            ProgressiveFit(generator, stages, first, LastIterate()), max_iterations=12, every=1
        )

    together = fit(queries, weights)
    for i in range(2):
        alone = fit(queries[i], float(weights[i]))
        assert torch.allclose(together.value[i], alone.value, rtol=0, atol=1e-9)
        for name in ("objective", "weight of features"):
            assert torch.allclose(together.history[name][:, i], alone.history[name])


def test_one_stage_of_all_blocks_is_a_plain_fit(psi, generator, query):
    objective = objective_of(psi, query)(1.0)
    one = ProgressiveFit(
        generator, [FitStage(objective, Adam(1e-2), 5)], start(generator), LastIterate()
    )
    plain = GeneratorFit(
        generator, objective, start(generator), optimiser=Adam(1e-2), selection=LastIterate()
    )
    ends = [iterate(fit, max_iterations=12).state.tensors["theta"] for fit in (one, plain)]
    assert torch.equal(*ends)


def test_the_optimiser_begins_anew_with_a_stage(psi, generator, query):
    objective = objective_of(psi, query)(1.0)
    stages = [FitStage(objective, Adam(1e-2), 3)] * 2
    fit = ProgressiveFit(generator, stages, start(generator), LastIterate())
    halves = GeneratorFit(
        generator, objective, start(generator), optimiser=Adam(1e-2), selection=LastIterate()
    )
    middle = iterate(halves, max_iterations=3).state.tensors["theta"]
    again = GeneratorFit(
        generator, objective, middle, optimiser=Adam(1e-2), selection=LastIterate()
    )
    end = iterate(again, max_iterations=3).state.tensors["theta"]
    assert torch.equal(iterate(fit, max_iterations=6).state.tensors["theta"], end)


@pytest.mark.parametrize("stopped_after", [2, 4, 7])
def test_it_goes_on_exactly(psi, generator, query, stopped_after):
    whole = iterate(progressive(psi, generator, query), max_iterations=12, every=3)
    part = iterate(progressive(psi, generator, query), max_iterations=stopped_after, every=3)
    rest = iterate(progressive(psi, generator, query), max_iterations=12, every=3, state=part.state)
    assert torch.equal(rest.state.tensors["theta"], whole.state.tensors["theta"])
    assert torch.equal(rest.history["objective"], whole.history["objective"])


def test_the_best_valid_iterate_is_sought_in_all_stages(query):
    generator = PixelImage(SHAPE)
    model = SmoothClassifier().double()
    with torch.no_grad():
        model.head.weight *= 12
    psi = FeatureOperator(model, ("norm", LOGITS), SHAPE)
    fidelity = FeatureFidelity(psi, query, layers=["norm"])
    first = int(psi.split(psi(query))[LOGITS].argmax())
    target = ClassTarget(psi, 2 if first != 2 else 4)
    # Only the second stage asks for the class.
    stages = [
        FitStage(Objective([(1.0, fidelity), (weight, target)]), Adam(rate), steps)
        for weight, rate, steps in ((0.0, 1e-3, 5), (1.0, 5e-2, 300))
    ]
    rule = BestValidIterate(target, {"features": 1.0}, probability=0.5)
    fit = ProgressiveFit(generator, stages, generator.parameters_of(query), rule)
    early = iterate(fit, max_iterations=5, every=1)
    assert early.history["standing"][-1] == 0
    solution = iterate(fit, max_iterations=305, every=1)
    assert solution.history["standing"][-1] >= 1
    assert int(solution.history["chosen_step"][-1]) > 5
    assert int(psi.split(psi(solution.value))[LOGITS].argmax()) == int(target.target)


def test_wrong_settings_are_refused(psi, generator, query):
    make = objective_of(psi, query)
    with pytest.raises(ConfigurationError, match="each of the blocks"):
        progressive_stages(generator, make, weight=1.0, order=["layer_1"])
    with pytest.raises(ConfigurationError, match="relaxation"):
        progressive_stages(generator, make, weight=1.0, relaxation=1.5)
    with pytest.raises(ConfigurationError, match="weight be zero or more"):
        progressive_stages(generator, make, weight=torch.tensor([1.0, -1.0]))
    with pytest.raises(ConfigurationError, match="one step or more"):
        ProgressiveFit(generator, [], start(generator), LastIterate())
    stages = [
        FitStage(make(1.0), Adam(), 2),
        FitStage(Objective([(1.0, FeatureFidelity(psi, query))]), Adam(), 2),
    ]
    with pytest.raises(ConfigurationError, match="Stage 2 has the terms features"):
        ProgressiveFit(generator, stages, start(generator), LastIterate())
