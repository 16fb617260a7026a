"""From the solution of a counterfactual problem to results that can be read and stored."""

from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from dipct.evaluation import agreement, edit_size, localisation, psnr
from dipct.generator import Generator
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.phantom import Scene, SceneTask
from dipct.pipeline.counterfactual_problem import CounterfactualProblem
from dipct.pipeline.inversion import described, generator_parts, history_of
from dipct.pretrain import TrainedClassifier
from dipct.run import installed_versions
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
        source: what the queries were read from.
        seconds: that all of it took.
    """
    # An image is judged as it is given away: in the box.
    images = solution.value.detach().clamp(0, 1)
    with torch.no_grad():
        is_valid, p_target = problem.target.standing(problem.operator(images))
        natural = {
            term.name: (term.value(queries), term.value(images))
            for _, term in problem.terms
            if term.name in _MANIFOLD
        }
    tensors, target = solution.state.tensors, problem.target.target.expand(len(queries))
    found = []
    for i in range(len(queries)):
        query, image = queries[i].cpu().numpy(), images[i].cpu().numpy()
        valid, probability = bool(is_valid[i]), float(p_target[i])
        confident = valid and probability >= settings.probability
        scores = edit_scores(query, image)
        for name, (of_query, of_image) in natural.items():
            title = name.replace(" ", "_")
            scores |= {f"{title}_query": float(of_query[i]), title: float(of_image[i])}
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
                status=solution.status.name,
                steps=solution.iterations,
                chosen_step=max(int(tensors["chosen_step"][i]), 0),
                history=history_of(solution, i),
                settings=settings.to_values(),
                classifier=described(classifier),
                generator=generator_parts(generator, tensors["chosen"][i]),
                source=source,
                duration_s=seconds / len(queries),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=installed_versions(),
                scores=scores,
            )
        )
    return found


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
    query: np.ndarray, image: np.ndarray, task: SceneTask, scene: Scene, target: int, *, valid: int
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Scores of a counterfactual whose true ones are known.

    Many images of the target class are right. Where edits belong is what any of several true
    counterfactuals edits; which pixels rank first is measured by what all of them do; direction
    and PSNR are towards the one that the image comes nearest to.

    Args:
        query: the picture of the scene, or what a scanner made of it, [C H W].
        image: the counterfactual, likewise.
        task: what the scene is of.
        scene: the query's.
        target: wanted class.
        valid: true counterfactuals that are drawn.

    Returns:
        Scores by name, the nearest true counterfactual and the region where edits belong.
    """
    known = [task.counterfactual(scene, target, seed=k).image for k in range(valid)]
    may, must = task.edit_regions(scene, target, valid=valid)
    # Draws may have no pixel in common.
    core = must if must.any() else may
    mass, rank = localisation(query, image, may), localisation(query, image, core)
    nearest = min(known, key=lambda each: float(np.sum((each - image) ** 2)))
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
    return scores, nearest, may


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
    if confident:
        return f"In the target class with probability {probability:.3f}."
    if valid:
        return (
            f"In the target class, but with probability {probability:.3f} instead of "
            f"{settings.probability} {after}. Use more steps or a larger class_weight."
        )
    return (
        f"Not in the target class (probability {probability:.3f}) {after}. Use more steps, a "
        "larger class_weight, or a smaller fidelity_weight."
    )
