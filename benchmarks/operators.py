"""Claim: stored matrices are built in seconds and applied near the memory bandwidth.

Builds the 501 x 501 fan-beam matrices and the CWI single-slice walnut matrix, and compares
forward and adjoint with ASTRA, SciPy and ODL on the same geometry, in one process.

    python benchmarks/operators.py            # measures, about two minutes
    python benchmarks/operators.py --table    # only rewrites the table from the stored results
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import astra
import numpy as np
import odl
import torch
from measuring import RESULTS, machine, median_seconds, replace_section, table, write_result
from odl.applications import tomo

from dipct import ConeSliceGeometry, FanGeometry, Grid, RayTransform, ray_transform
from dipct.measurement.nominal import cwi_walnut_slice
from dipct.operator.astra_ray import AstraRayTransform
from dipct.operator.checks import adjoint_mismatch

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULT = RESULTS / "operators.json"
PIXELS = 501
SOURCE_ORIGIN, ORIGIN_DETECTOR, WIDTH = 660.0, 1330.0, 1149.0


def read_bandwidth(n_bytes: int) -> float:
    """GB/s of summing a float32 tensor of that size."""
    values = torch.rand(n_bytes // 4)
    return n_bytes / median_seconds(lambda: values.sum()) / 1e9


def fan_geometry(views: int, columns: int) -> FanGeometry:
    angles = np.arange(views) * (2 * np.pi / views)
    return FanGeometry(angles, columns, WIDTH / columns, SOURCE_ORIGIN, ORIGIN_DETECTOR)


def perturbed_walnut() -> ConeSliceGeometry:
    """Sources a tenth of a millimetre off, as in corrected orbits: no symmetry is left."""
    nominal = cwi_walnut_slice(120)
    vectors = nominal.vectors().copy()
    vectors[:, :3] += np.random.default_rng(0).normal(0, 0.1, (120, 3))
    return replace(nominal, view_vectors=vectors)


def odl_transform(views: int, columns: int):
    half = PIXELS / 2
    space = odl.uniform_discr([-half] * 2, [half] * 2, [PIXELS] * 2, dtype="float32")
    views_partition = odl.uniform_partition(0, 2 * np.pi, views)
    columns_partition = odl.uniform_partition(-WIDTH / 2, WIDTH / 2, columns)
    geometry = tomo.FanBeamGeometry(
        views_partition, columns_partition, SOURCE_ORIGIN, ORIGIN_DETECTOR
    )
    return tomo.RayTransform(space, geometry, impl="astra_cpu")


def measure(name: str, geometry, peers: bool) -> dict:
    grid = Grid((PIXELS, PIXELS), 1.0 if peers else 0.1)
    start = time.perf_counter()
    operator = ray_transform(geometry, grid)
    seconds = time.perf_counter() - start
    whole = operator if isinstance(operator, RayTransform) else RayTransform(geometry, grid)
    x = torch.rand(operator.domain_shape)
    y = torch.rand(operator.range_shape)
    # Index and value of every entry of the whole matrix, stored or not.
    n_bytes = 8 * whole.n_nonzeros
    forward, adjoint = (
        median_seconds(lambda: operator(x)),
        median_seconds(lambda: operator.adjoint(y)),
    )
    bandwidth = read_bandwidth(n_bytes)
    batch_x, batch_y = torch.rand(8, *operator.domain_shape), torch.rand(8, *operator.range_shape)
    result = {
        "rows": int(np.prod(operator.range_shape)),
        "columns": int(np.prod(operator.domain_shape)),
        "nonzeros": whole.n_nonzeros,
        "stored_nonzeros": operator.n_nonzeros,
        "build_s": seconds,
        "forward_ms": 1e3 * forward,
        "adjoint_ms": 1e3 * adjoint,
        "read_bandwidth_gb_s": bandwidth,
        "read_all_ms": n_bytes / bandwidth / 1e6,
        "forward_share_of_bandwidth": n_bytes / forward / 1e9 / bandwidth,
        "adjoint_share_of_bandwidth": n_bytes / adjoint / 1e9 / bandwidth,
        "forward_ms_per_image_of_8": 1e3 * median_seconds(lambda: operator(batch_x), 5) / 8,
        "adjoint_ms_per_image_of_8": 1e3 * median_seconds(lambda: operator.adjoint(batch_y), 5) / 8,
        "adjoint_mismatch_float32": adjoint_mismatch(operator),
        "whole_matrix": {
            "forward_ms": 1e3 * median_seconds(lambda: whole(x)),
            "adjoint_ms": 1e3 * median_seconds(lambda: whole.adjoint(y)),
        },
        "peers": {},
    }
    matrix = whole.to_scipy()
    flat_x, flat_y = x.numpy().ravel(), y.numpy().ravel()
    result["peers"]["scipy"] = {
        "forward_ms": 1e3 * median_seconds(lambda: matrix @ flat_x, 5),
        "adjoint_ms": 1e3 * median_seconds(lambda: matrix.T @ flat_y, 5),
    }
    if peers:
        on_the_fly = AstraRayTransform(geometry, grid)
        difference = on_the_fly(x) - operator(x)
        result["relative_difference_to_astra"] = float(difference.norm() / operator(x).norm())
        result["peers"]["astra"] = {
            "forward_ms": 1e3 * median_seconds(lambda: on_the_fly(x), 5),
            "adjoint_ms": 1e3 * median_seconds(lambda: on_the_fly.adjoint(y), 5),
        }
        start = time.perf_counter()
        identifier = on_the_fly._projector.identifier
        astra.matrix.get(astra.projector.matrix(identifier))
        result["peers"]["astra"]["build_s"] = time.perf_counter() - start
        transform = odl_transform(*geometry.projection_shape)
        image = transform.domain.element(x[0].numpy())
        sinogram = transform.range.element(y.numpy())
        result["peers"]["odl"] = {
            "forward_ms": 1e3 * median_seconds(lambda: transform(image), 5),
            "adjoint_ms": 1e3 * median_seconds(lambda: transform.adjoint(sinogram), 5),
        }
    print(name, json.dumps(result, indent=1))
    return result


def write_table() -> None:
    stored = json.loads(RESULT.read_text())
    rows = []
    for name, r in stored["cases"].items():
        peers = r["peers"]

        def ratios(peer: str, r=r, peers=peers) -> str:
            if peer not in peers:
                return ""
            return " / ".join(f"{peers[peer][k] / r[k]:.1f}" for k in ("forward_ms", "adjoint_ms"))

        rows.append(
            [
                name,
                f"{r['rows']} x {r['columns']}",
                f"{r['nonzeros'] / 1e6:.1f} M / {r['stored_nonzeros'] / 1e6:.1f} M",
                f"{r['build_s']:.1f}",
                f"{r['forward_ms']:.1f} / {r['adjoint_ms']:.1f}",
                f"{r['forward_share_of_bandwidth']:.0%} / {r['adjoint_share_of_bandwidth']:.0%}",
                f"{r['whole_matrix']['forward_ms']:.1f} / {r['whole_matrix']['adjoint_ms']:.1f}",
                " / ".join(
                    f"{r['read_all_ms'] / r['whole_matrix'][k]:.0%}"
                    for k in ("forward_ms", "adjoint_ms")
                ),
                ratios("scipy"),
                ratios("astra"),
                ratios("odl"),
            ]
        )
    header = ["case", "matrix", "non-zeros: all / stored", "build [s]", "forward / adjoint [ms]"]
    header += [
        "equivalent share of read bandwidth",
        "whole matrix [ms]",
        "its share",
        "SciPy",
        "ASTRA",
        "ODL",
    ]
    where = stored["machine"]
    text = (
        f"{table(header, rows)}\n\n{where['cores']} cores ({where['processor']}), torch "
        f"{where['versions']['torch']}, commit {where['commit']}; medians. The equivalent share "
        "is the time of reading all non-zeros (8 bytes each) at the bandwidth of that run over "
        "the time taken: circular scans store only a quarter of them and can pass 100 %. The "
        "whole matrix is what a scan without the symmetry uses, such as a corrected orbit. The "
        "last three columns say how many times longer the peer takes, forward / adjoint."
    )
    replace_section(PAGE, "operators", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    if not parser.parse_args().table:
        where = machine()
        cases = {
            "fan 120 x 128": measure("fan 120 x 128", fan_geometry(120, 128), True),
            "fan 120 x 700": measure("fan 120 x 700", fan_geometry(120, 700), True),
            "CWI walnut slice 120 x 128, nominal": measure("walnut", cwi_walnut_slice(120), False),
            "the same, orbit perturbed": measure("perturbed", perturbed_walnut(), False),
        }
        write_result(RESULT, {"machine": where, "cases": cases})
    write_table()


if __name__ == "__main__":
    main()
