"""Images that differ from a given one in a region only."""

import pytest
import torch

from dipct.errors import ShapeError
from dipct.generator import PixelImage, RegionGenerator

SHAPE = (3, 5, 6)


def parts(number=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(number, *SHAPE, generator=random)
    theta = torch.randn(number, 90, generator=random)
    region = torch.rand(5, 6, generator=random) < 0.4
    return image, theta, region


def test_outside_the_region_nothing_changes_and_inside_the_generator_decides():
    image, theta, region = parts()
    inner = PixelImage(SHAPE, output="sigmoid")
    found = RegionGenerator(inner, image, region)(theta)
    assert torch.equal(found[..., ~region], image[..., ~region])
    assert torch.equal(found[..., region], inner(theta)[..., region])
    assert not torch.equal(inner(theta)[..., ~region], image[..., ~region])


def test_each_image_may_have_its_own_region():
    image, theta, region = parts()
    regions = torch.stack([region, ~region])
    inner = PixelImage(SHAPE, output="sigmoid")
    found = RegionGenerator(inner, image, regions)(theta)
    for i, own in enumerate(regions):
        alone = RegionGenerator(inner, image[i], own)(theta[i])
        # The last digit of a sigmoid may depend on how many there are.
        torch.testing.assert_close(found[i], alone, rtol=1e-6, atol=1e-7)


def test_parameters_have_no_gradient_from_outside():
    image, theta, region = parts(1)
    theta.requires_grad_()
    made = RegionGenerator(PixelImage(SHAPE, output="sigmoid"), image, region)
    made(theta)[..., ~region].sum().backward()
    assert not theta.grad.any()
    made(theta)[..., region].sum().backward()
    assert int((theta.grad != 0).sum()) == 3 * int(region.sum())


@pytest.mark.parametrize(
    ("image", "region", "message"),
    [
        (torch.zeros(3, 5, 5), torch.ones(5, 6, dtype=torch.bool), "The image must be"),
        (torch.zeros(SHAPE), torch.ones(5, 6), "true or false"),
        (torch.zeros(SHAPE), torch.ones(6, 5, dtype=torch.bool), "5 x 6 pixels"),
        (torch.zeros(SHAPE), torch.zeros(5, 6, dtype=torch.bool), "true somewhere"),
    ],
)
def test_what_does_not_fit_is_refused(image, region, message):
    with pytest.raises(ShapeError, match=message):
        RegionGenerator(PixelImage(SHAPE), image, region)
