"""The jobs of the benchmark of pre-images: what each needs, computes and writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import counterfactual_cases as cases
import numpy as np
from compared_arms import still_right, true_images, tuned
from counterfactual_cases import Queries, read
from counterfactual_jobs import weights
from counterfactual_plans import DEFAULT, FIRST_TUNING, FIT_STEPS, STEPS, Plan
from job_queue import Job, path_of
from measuring import RESULTS
from scipy.ndimage import gaussian_filter

from dipct.evaluation import psnr
from dipct.pipeline import pre_image

STAGES = ("layer1", "layer2", "layer3", "layer4")
NETWORKS = ("dip", "dip-dep")
METHODS = ("pixel-tv", "pixel-alpha", *NETWORKS)
# The first residual block, as in arXiv 2010.12046.
REPAIRED_FROM = ("layer1",)
WEIGHTS = (0.002, 0.02, 0.1, 0.5)
# Counterfactuals of queries with a missing block, as tuned without one.
FILLING = ("LSO + DIP", "LSO + DIP + DEP")
NONE, MISSING = "none", "missing block"
BLOCK = np.s_[..., 9:17, 9:17]
_CROP, _BLUR_STD = 5, 1.2


@dataclass(frozen=True)
class PreImagePlan(Plan):
    """What a call of this benchmark computes, and where.

    Attributes:
        scored: queries.
        tried: other queries, that weights are chosen on.
        steps: of every pre-image.
        edit_steps: of every counterfactual.
        fit_steps: of the network to the query before that.
    """

    scored: int = 8
    tried: int = 2
    steps: int = 300
    edit_steps: int = STEPS
    fit_steps: int = FIT_STEPS


PLAN = PreImagePlan(RESULTS / "pre_images", {}, tuned(FILLING))
QUICK = replace(
    PLAN,
    folder=PLAN.runs / "quick",
    scored=3,
    tried=1,
    steps=3,
    edit_steps=3,
    fit_steps=3,
)
"""For a look at how it all works; its numbers say nothing."""


def cropped(image: np.ndarray) -> np.ndarray:
    """Without the left and the top, padded with black."""
    found = image.copy()
    found[..., :_CROP] = 0
    found[..., :_CROP, :] = 0
    return found


def blurred(image: np.ndarray) -> np.ndarray:
    """By a Gaussian."""
    return gaussian_filter(image, (0, _BLUR_STD, _BLUR_STD)).astype(np.float32)


def with_a_hole(image: np.ndarray) -> np.ndarray:
    """Black in a block, over an eye."""
    found = image.copy()
    found[BLOCK] = 0
    return found


DEFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cropped": cropped,
    "blurred": blurred,
    MISSING: with_a_hole,
}


def defective(images: np.ndarray, defect: str) -> np.ndarray:
    """Images [N C H W] with a defect."""
    return images if defect == NONE else np.stack([DEFECTS[defect](image) for image in images])


@cache
def asked(number: int, *, tuning: bool = False) -> Queries:
    """Queries that are scored, or those that weights are chosen on."""
    return cases.queries("faces", 0, number, first=FIRST_TUNING if tuning else 0)


def name_of(kind: str, *parts: str | float) -> str:
    """Name of a job."""
    return "-".join([kind, *(str(part).replace(" ", "-") for part in parts)])


def all_jobs(plan: PreImagePlan) -> list[Job]:
    """By stage, the first one first: the claims are of it."""
    trained = weights("faces", 0, plan=DEFAULT)
    found, first = [trained], (trained.name,)
    for layer in STAGES:
        defects = (*DEFECTS, NONE) if layer in REPAIRED_FROM else (NONE,)
        for weight in WEIGHTS:
            for kind in ("defective", "whole") if layer in REPAIRED_FROM else ("whole",):
                name = name_of("choice", layer, kind, weight)
                found.append(Job(name, first, make_choice, (layer, kind, weight)))
        for method in reversed(METHODS):
            for defect in defects if method in NETWORKS else (NONE,):
                needs = first + (_choices(layer, defect) if method == "dip-dep" else ())
                name = name_of("pre-image", layer, method, defect)
                found.append(Job(name, needs, make_pre_images, (layer, method, defect)))
        if layer == STAGES[0]:
            found += [Job(filled(each), first, fill, (each,)) for each in plan.arms]
    return found


def filled(arm: str) -> str:
    """Name of the job of an arm."""
    return name_of("filled", cases.slug(arm))


def make_choice(
    plan: PreImagePlan, name: str, layer: str, kind: str, weight: float
) -> Mapping[str, Any]:
    """Pre-images of other queries with a weight: of whole ones, or with each defect."""
    clean = asked(plan.tried, tuning=True).images
    defects = (NONE,) if kind == "whole" else tuple(DEFECTS)
    queries = np.concatenate([defective(clean, defect) for defect in defects])
    found = _pre_images(plan, queries, layer, "dip-dep", weight)
    return {"psnr_db": psnrs(found, np.concatenate([clean] * len(defects)))}


def chosen_weight(plan: Plan, layer: str, defect: str) -> float:
    """The weight of the highest mean PSNR on other queries.

    It is one for all defects: which of them a query has is not to be known.
    """
    merits = [
        float(np.mean(read(path_of(plan, name))["psnr_db"])) for name in _choices(layer, defect)
    ]
    return WEIGHTS[int(np.argmax(merits))]


def make_pre_images(
    plan: PreImagePlan, name: str, layer: str, method: str, defect: str
) -> Mapping[str, Any]:
    """Pre-images of all queries, against the queries without the defect."""
    clean = asked(plan.scored).images
    queries = defective(clean, defect)
    weight = chosen_weight(plan, layer, defect) if method == "dip-dep" else None
    found = _pre_images(plan, queries, layer, method, weight)
    cases.write_images(name, found, plan=plan)
    values = {
        "layer": layer,
        "method": method,
        "defect": defect,
        "weight": weight,
        "psnr_db": psnrs(found, clean),
    }
    if defect != NONE:
        values["psnr_of_query_db"] = psnrs(queries, clean)
        values["psnr_to_shown_db"] = psnrs(found, queries)
        # The best that an image that shows nothing can have: it gains on a black margin too.
        plain = np.broadcast_to(clean.mean((-2, -1), keepdims=True), clean.shape)
        values["psnr_of_plain_db"] = psnrs(plain, clean)
    return values


def holed(plan: PreImagePlan) -> tuple[Queries, list[int]]:
    """Queries with a missing block that can be explained, and their numbers."""

    def altered(images: np.ndarray) -> np.ndarray:
        return defective(images, MISSING)

    return still_right(cases.classifier("faces", 0), asked(plan.scored), altered)


def true_answers(plan: PreImagePlan, numbers: list[int]) -> np.ndarray:
    """True counterfactuals of queries without a missing block, [N C H W]."""
    return true_images(asked(plan.scored))[numbers]


def with_mean_colour(images: np.ndarray) -> np.ndarray:
    """Images whose missing block has the mean colour of the rest: filled by what knows nothing."""
    found, kept = images.copy(), np.ones(images.shape[-2:], bool)
    kept[BLOCK] = False
    found[BLOCK] = images[..., kept].mean(-1)[..., None, None]
    return found


def fill(plan: PreImagePlan, name: str, arm_name: str) -> Mapping[str, Any]:
    """Counterfactuals of queries with a missing block, inside it."""
    queries, kept = holed(plan)
    steps = {"steps": plan.edit_steps, "fit_steps": plan.fit_steps}
    chosen = cases.chosen_of("faces", arm_name)
    settings = cases.settings_of(plan.arms[arm_name], chosen | steps, plan=plan)
    if not kept:
        raise SystemExit("No query with a missing block is seen right: there is nothing to fill.")
    found = cases.explain(cases.classifier("faces", 0), queries, settings)
    images, true = np.stack([each.image for each in found]), true_answers(plan, kept)
    cases.write_images(name, images, plan=plan)
    return {
        "arm": arm_name,
        "queries": kept,
        "settings": chosen,
        "valid": [float(each.valid) for each in found],
        "psnr_db": psnrs(images[BLOCK], true[BLOCK]),
        "psnr_of_query_db": psnrs(queries.images[BLOCK], true[BLOCK]),
        "psnr_of_plain_db": psnrs(with_mean_colour(queries.images)[BLOCK], true[BLOCK]),
    }


def psnrs(images: np.ndarray, truth: np.ndarray) -> list[float]:
    """Of each image [dB]."""
    return [float(psnr(a, b, data_range=1.0)) for a, b in zip(images, truth, strict=True)]


def _choices(layer: str, defect: str) -> tuple[str, ...]:
    kind = "whole" if defect == NONE else "defective"
    return tuple(name_of("choice", layer, kind, weight) for weight in WEIGHTS)


def _pre_images(
    plan: PreImagePlan, queries: np.ndarray, layer: str, method: str, weight: float | None
) -> np.ndarray:
    values = {} if weight is None else {"manifold_weight": weight}
    trained = cases.classifier("faces", 0)
    settings = {"layers": (layer,), "steps": plan.steps, "device": plan.device, **values}
    found = pre_image(trained, queries, method=method, **settings)
    return np.stack([each.image for each in found])
