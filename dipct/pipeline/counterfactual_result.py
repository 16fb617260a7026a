"""From the solution of a counterfactual problem to results that can be read and stored."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dipct.evaluation import agreement, edit_size, localisation, psnr
from dipct.generator import Generator
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.objective import PROBABILITY_TOLERANCE, DataTerm
from dipct.operator import LOGITS
from dipct.phantom import TrueCounterfactuals
from dipct.pipeline.counterfactual_problem import CounterfactualProblem, OtherClassifier
from dipct.pipeline.inversion import record_of
from dipct.pretrain import TrainedClassifier
from dipct.solver import Solution, Status

# Terms whose value says how natural an image looks.
_MANIFOLD = ("loss estimate", "centroids", "batch statistics")


def counterfactual_results(
    classifier: TrainedClassifier,
    problem: CounterfactualProblem,
    generator: Generator,
    queries: Tensor,
    before: Tensor,
    solution: Solution,
    settings: CounterfactualSettings,
    *,
    others: Sequence[OtherClassifier],
    measurement: DataTerm | None,
    allowed: Tensor | None,
    source: str,
    seconds: float,
) -> list[Counterfactual]:
    """One result for each query.

    Args:
        classifier: that was explained.
        problem: that was solved.
        generator: that made the images, without a restriction to a region.
        queries: [B C H W].
        before: probabilities of the queries, [B K].
        solution: of the fit.
        settings: of the fit.
        others: that had a say; how far they see their classes is among the scores.
        measurement: misfit to a scan; those of queries and images are among the scores.
        allowed: where the images were free to change, [B H W].
        source: what the queries were read from.
        seconds: that all of it took.
    """
    # An image is judged as it is given away: in the box.
    images = solution.value.detach().clamp(0, 1)
    with torch.no_grad():
        standing = problem.target.standing(
            problem.operator(images), confident_from=settings.probability
        )
        natural = {
            term.name: (term.value(queries), term.value(images))
            for _, term in problem.terms
            if term.name in _MANIFOLD
        }
        if measurement is not None:
            # Per measured value, in units of the noise: about one where the image explains it.
            natural["scan misfit"] = tuple(
                measurement.fidelity.discrepancy(measurement.operator(each))
                for each in (queries, images)
            )
    kept = {name: (one, two) for name, one, two in _of_others(others, queries, images)}
    target = problem.target.target.expand(len(queries))
    found = []
    for i in range(len(queries)):
        query, image = queries[i].cpu().numpy(), images[i].cpu().numpy()
        valid, confident = bool(standing.is_valid[i]), bool(standing.is_confident[i])
        probability = float(standing.probability[i])
        scores = edit_scores(query, image)
        for name, (of_query, of_image) in natural.items():
            title = name.replace(" ", "_")
            scores |= {f"{title}_query": float(of_query[i]), title: float(of_image[i])}
        for name, (of_query, of_image) in kept.items():
            scores |= {f"{name}_query": float(of_query[i]), name: float(of_image[i])}
        found.append(
            Counterfactual(
                query=query,
                image=image,
                target=int(target[i]),
                predicted=int(before[i].argmax()),
                valid=valid,
                confident=confident,
                p_target=probability,
                p_target_query=float(before[i, target[i]]),
                reason=_reason(valid, confident, probability, solution, settings),
                scores=scores,
                allowed=None if allowed is None else allowed[i].cpu().numpy(),
                **record_of(
                    i,
                    classifier,
                    generator,
                    solution,
                    problem.terms,
                    settings,
                    source=source,
                    seconds=seconds,
                ),
            )
        )
    return found


@torch.no_grad()
def _of_others(
    others: Sequence[OtherClassifier], queries: Tensor, images: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each other classifier the probability of its class, in the queries and in the images.

    Its class is the one asked for, or that it sees in the query.
    """
    for number, other in enumerate(others, 1):
        operator = other.classifier.features([LOGITS]).to(queries.device)
        before, after = (operator(each).softmax(-1) for each in (queries, images))
        seen = (
            before.argmax(-1)
            if other.target is None
            else torch.full_like(before.argmax(-1), other.target)
        )
        yield (
            f"other_{number}_probability",
            before.gather(-1, seen[:, None])[:, 0],
            after.gather(-1, seen[:, None])[:, 0],
        )


def edit_scores(query: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Sizes of an edit by name, and the PSNR towards the query."""
    size = edit_size(query, image)
    return {
        "mse": size.mean_squared,
        "concentration": size.concentration,
        "energy_concentration": size.energy_concentration,
        "changed_area": size.area,
        "sparsity": size.sparsity,
        "psnr_to_query_db": psnr(image, query, data_range=1.0),
    }


def known_scores(
    query: np.ndarray, image: np.ndarray, truth: TrueCounterfactuals
) -> tuple[dict[str, float], np.ndarray]:
    """Scores of a counterfactual whose true ones are known.

    Many images of the target class are right. Where edits belong is what any of several true
    counterfactuals edits; which pixels rank first is measured by what all of them do; direction
    and PSNR are towards the one that the image comes nearest to.

    Args:
        query: the picture of the scene, or what a scanner made of it, [C H W].
        image: the counterfactual, likewise.
        truth: right answers.

    Returns:
        Scores by name, and the nearest true counterfactual [C H W].

    Raises:
        ShapeError: images that are not of the shape of the right ones.
    """
    may = truth.may
    # Draws may have no pixel in common.
    core = truth.must if truth.must.any() else may
    mass, rank = localisation(query, image, may), localisation(query, image, core)
    nearest = min(truth.images, key=lambda each: float(np.sum((each - image) ** 2)))
    near = agreement(query, image, nearest, may)
    scores = {
        "mass_accuracy": mass.mass_accuracy,
        "normalised_mass_accuracy": mass.normalised_mass_accuracy,
        "pointing": mass.pointing,
        "rank_accuracy": rank.rank_accuracy,
        "auroc": rank.auroc,
        "average_precision": rank.average_precision,
        "overlap": rank.overlap,
        "matched_overlap": rank.matched_overlap,
        "direction": near.direction,
        "psnr_gain_db": near.psnr_gain_db,
        "background_rmse": near.background,
    }
    return scores, nearest


def _reason(
    valid: bool,
    confident: bool,
    probability: float,
    solution: Solution,
    settings: CounterfactualSettings,
) -> str:
    """What came of it, and what to do if that is not what was wanted."""
    after = f"after {solution.iterations} steps"
    if solution.status is Status.DIVERGED:
        after = f"{after}, when the iteration diverged: use a lower learning_rate"
    if settings.is_graded:
        got = f"Probability {probability:.3f} of the target class for the"
        if valid:
            return f"{got} {settings.class_probability} that was asked for {after}."
        return (
            f"{got} {settings.class_probability} that was asked for, which is not within "
            f"{PROBABILITY_TOLERANCE} of it, {after}. Use more steps, a larger class_weight, or a "
            "smaller fidelity_weight."
        )
    if confident:
        end = f" {after}" if solution.status is Status.DIVERGED else ""
        return f"In the target class with probability {probability:.3f}{end}."
    if valid:
        return (
            f"In the target class, but with probability {probability:.3f} instead of "
            f"{settings.probability} {after}. Use more steps or a larger class_weight."
        )
    return (
        f"Not in the target class (probability {probability:.3f}) {after}. Use more steps, a "
        "larger class_weight, or a smaller fidelity_weight."
    )
