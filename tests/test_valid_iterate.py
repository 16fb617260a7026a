"""The best of the iterates that are in the target class."""

import math

import pytest
import torch
from catalogue import F64, SmoothClassifier

from dipct.errors import ConfigurationError
from dipct.generator import PixelImage
from dipct.objective import ClassTarget, FeatureFidelity, Objective
from dipct.operator import LOGITS, FeatureOperator
from dipct.solver import Adam, BestValidIterate, GeneratorFit, Status, iterate
from dipct.solver.selection import Iterate

SHAPE = (2, 6, 7)
COSTS = {"features": 2.0}


@pytest.fixture(scope="module")
def psi():
    model = SmoothClassifier().double()
    with torch.no_grad():
        # As certain as trained classifiers are.
        model.head.weight *= 12
    return FeatureOperator(model, ("second", LOGITS), SHAPE)


def sequence(psi, target, logits, objectives):
    """Iterates with given logits and objectives."""
    for i, (row, objective) in enumerate(zip(logits, objectives, strict=True)):
        eta = torch.zeros(psi.range_shape[0], dtype=F64)
        eta[-5:] = torch.tensor(row, dtype=F64)
        cost = torch.tensor(objective / 2, dtype=F64)
        yield Iterate(
            i,
            torch.full((3,), float(i)),
            torch.zeros(SHAPE),
            cost,
            torch.zeros(()),
            {target.name: target.value_of(eta), "features": cost},
            {id(psi): eta},
        )


def chosen(rule, iterates):
    iterates = list(iterates)
    tensors = rule.start(iterates[0])
    for each in iterates:
        tensors |= rule.update(tensors, each)
    return tensors


OTHER, BARELY, SURELY = [3.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 9.0, 0, 0, 0]


@pytest.mark.parametrize(
    ("logits", "objectives", "best", "standing"),
    [
        # Confident before valid before any other, whatever they cost.
        ([OTHER, BARELY, SURELY, BARELY, OTHER], [0, 1, 9, 0.5, 0], 2, 2),
        ([OTHER, BARELY, OTHER], [0, 7, 0], 1, 1),
        # Among confident ones the cheapest.
        ([SURELY, SURELY, SURELY], [3, 1, 2], 1, 2),
        # Among those that are not valid the most probable.
        ([OTHER, [1.0, 0.9, 0, 0, 0], OTHER], [0, 5, 0], 1, 0),
    ],
)
def test_the_best_is_chosen(psi, logits, objectives, best, standing):
    target = ClassTarget(psi, 1)
    tensors = chosen(BestValidIterate(target, COSTS), sequence(psi, target, logits, objectives))
    assert int(tensors["chosen_step"]) == best
    assert tensors["chosen"].tolist() == [best] * 3
    assert float(tensors["standing"]) == standing


def logits_of(probability):
    """Of five classes, the second with this probability."""
    return [0, math.log(4 * probability / (1 - probability)), 0, 0, 0]


@pytest.mark.parametrize(
    ("probabilities", "objectives", "best", "standing"),
    [
        # Neither the query's class nor the target's counts, but how near the probability is.
        ([0.05, 0.31, 0.95], [0, 5, 9], 1, 2),
        # Among those that are near enough the cheapest.
        ([0.30, 0.33, 0.5], [3, 1, 0], 1, 2),
        # Where none is, the nearest, from below or above.
        ([0.05, 0.21, 0.95], [0, 5, 9], 1, 0),
        ([0.05, 0.40, 0.95], [0, 5, 9], 1, 0),
    ],
)
def test_of_a_graded_target_the_one_with_its_probability_is_chosen(
    psi, probabilities, objectives, best, standing
):
    target = ClassTarget(psi, 1, loss="probability", probability=0.3)
    logits = [logits_of(each) for each in probabilities]
    rule = BestValidIterate(target, COSTS, patience=1)
    first, *others = sequence(psi, target, logits, objectives)
    tensors = chosen(BestValidIterate(target, COSTS), [first, *others])
    assert int(tensors["chosen_step"]) == best
    assert float(tensors["standing"]) == standing
    assert float(tensors["chosen_p_target"]) == pytest.approx(probabilities[best])
    done = rule.outcome(rule.figures(chosen(rule, [first, *others]), 3))
    assert done is (Status.TARGET_REACHED if standing else None)


def test_it_stops_after_so_many_confident_iterates_in_a_row(psi):
    target = ClassTarget(psi, 1)
    rule = BestValidIterate(target, COSTS, patience=2)
    for logits, done in (
        ([SURELY, OTHER, SURELY], False),
        ([OTHER, SURELY, SURELY], True),
        # Once done, done.
        ([SURELY, SURELY, OTHER], True),
    ):
        tensors = chosen(rule, sequence(psi, target, logits, [0, 0, 0]))
        outcome = rule.outcome(rule.figures(tensors, 3))
        assert outcome is (Status.TARGET_REACHED if done else None)


def fit(psi, query, target, patience=None, weight=1.0):
    term = ClassTarget(psi, target)
    objective = Objective([(1.0, FeatureFidelity(psi, query, layers=["second"])), (weight, term)])
    generator = PixelImage(SHAPE)
    return GeneratorFit(
        generator,
        objective,
        generator.parameters_of(query),
        optimiser=Adam(0.05),
        selection=BestValidIterate(term, COSTS, patience=patience),
    )


def queries(number):
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=F64)


def test_a_counterfactual_is_found_by_the_one_loop(psi):
    query = queries(1)[0]
    source = int(psi.split(psi(query))[LOGITS].argmax())
    target = 2 if source != 2 else 4
    solution = iterate(fit(psi, query, target), max_iterations=300, every=10)
    assert solution.history["standing"][-1] == 2
    logits = psi.split(psi(solution.value))[LOGITS]
    assert int(logits.argmax()) == target
    p = float(logits.softmax(0)[target])
    assert p == pytest.approx(solution.history["chosen_p_target"][-1])
    assert p >= 0.9
    stopped = iterate(fit(psi, query, target, patience=5), max_iterations=300, every=1)
    assert stopped.status is Status.TARGET_REACHED
    assert stopped.state.iteration < 300


def test_there_is_a_result_where_the_class_is_not_reached(psi):
    query = queries(1)[0]
    source = int(psi.split(psi(query))[LOGITS].argmax())
    solution = iterate(fit(psi, query, (source + 2) % 5, weight=0.0), max_iterations=3)
    assert solution.history["standing"][-1] == 0
    assert torch.isfinite(solution.value).all()


def test_a_batch_of_queries_is_solved_as_one_by_one(psi):
    query = queries(3)
    targets = torch.tensor([1, 4, 3])
    together = iterate(fit(psi, query, targets), max_iterations=40, every=40)
    for i in range(3):
        alone = iterate(fit(psi, query[i], int(targets[i])), max_iterations=40, every=40)
        torch.testing.assert_close(together.value[i], alone.value, rtol=1e-6, atol=1e-8)


def test_wrong_settings_are_refused(psi):
    target = ClassTarget(psi, 1)
    for wrong in ({"probability": 1.0}, {"patience": 0}):
        with pytest.raises(ConfigurationError, match="must"):
            BestValidIterate(target, COSTS, **wrong)
    for wrong in ({}, {"features": -1.0}, {"class": 1.0}):
        with pytest.raises(ConfigurationError, match="weights of other terms"):
            BestValidIterate(target, wrong)


def test_terms_that_the_objective_lacks_are_named(psi):
    query, term = queries(1)[0], ClassTarget(psi, 1)
    generator = PixelImage(SHAPE)
    objective = Objective([(1.0, FeatureFidelity(psi, query)), (1.0, term)])
    for rule in (
        BestValidIterate(term, {"feature": 1.0}),
        BestValidIterate(ClassTarget(psi.to(dtype=F64), 1), COSTS),
    ):
        fit = GeneratorFit(generator, objective, generator.parameters_of(query), selection=rule)
        with pytest.raises(ConfigurationError, match="the selection asks for class"):
            iterate(fit, max_iterations=1)
