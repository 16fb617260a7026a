"""Small reconstructions by a network, for the tests of what is made of them."""

from functools import cache

from small_scans import small_scan

import dipct


@cache
def network_run():
    """A fit that has settled, on twelve pixels along a side."""
    scan = small_scan(views=5, pixels=12, noise=0.05)
    return dipct.reconstruct(
        scan, method="dip", iterations=800, tv_weight=1.0, stopping="none", precision="float32"
    )


@cache
def quantified_run():
    """The same with its uncertainty, all settings as they are."""
    return dipct.quantify(network_run())
