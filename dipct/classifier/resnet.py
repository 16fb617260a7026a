"""Residual networks that classify images, with the parameter names that torchvision gave them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Names of the four stages, whose outputs are the usual features."""

TRUNK = "fc:input"
"""Name of the features that the last layer makes logits of, for a feature operator."""

_RESNET18 = (64, 128, 256, 512)
_SMALL = (16, 32, 64, 128)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, beside a way past them.

    He et al., CVPR 2016, figure 5 left.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: of the first convolution, and of the way past where it has one of its own.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N C H W] to [N C' H' W']."""
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class ResNet(nn.Module):
    """A residual network of four stages with two blocks each.

    Args:
        channels: of the four stages.
        classes: number of logits.
        in_channels: of the images.
        small_images: begins with a 3 x 3 convolution instead of a 7 x 7 one with stride two and
            a pooling, for images of some dozen pixels.
        halved: that convolution has stride two.

    Raises:
        ConfigurationError: not four stages, or a number below one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        in_channels: int = 3,
        small_images: bool = False,
        halved: bool = False,
    ) -> None:
        super().__init__()
        if halved and not small_images:
            raise ConfigurationError(
                "halved is for small_images; the first convolution of others has stride two anyway."
            )
        if len(channels) != len(STAGES) or min(*channels, classes, in_channels) < 1:
            raise ConfigurationError(
                "A ResNet needs the channels of four stages, classes and in_channels of at least "
                f"one; got {list(channels)}, {classes} and {in_channels}."
            )
        first = channels[0]
        kernel, stride = (3, 2 if halved else 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, first, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        pooling = nn.MaxPool2d(3, stride=2, padding=1)
        self.maxpool: nn.Module = nn.Identity() if small_images else pooling
        before = first
        for i, (name, after) in enumerate(zip(STAGES, channels, strict=True)):
            blocks = (
                ResidualBlock(before, after, 1 if i == 0 else 2),
                ResidualBlock(after, after, 1),
            )
            self.add_module(name, nn.Sequential(*blocks))
            before = after
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)
        self.stage_channels = tuple(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N K] of normalised images [N C H W]."""
        hidden = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for name in STAGES:
            hidden = self.get_submodule(name)(hidden)
        return self.fc(self.avgpool(hidden).flatten(1))


def resnet18(classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-18 (He et al., CVPR 2016, table 1); weights of torchvision fit into it."""
    return ResNet(_RESNET18, classes, in_channels=in_channels)


def small_resnet(classes: int, *, in_channels: int = 3) -> ResNet:
    """A residual network of 0.7 million parameters for images of 32 to 64 pixels."""
    return ResNet(_SMALL, classes, in_channels=in_channels, small_images=True)


def halved_resnet(classes: int, *, in_channels: int = 3) -> ResNet:
    """The small residual network on images halved by its first convolution: for 64 pixels and more.

    A quarter of the work of :func:`small_resnet`.
    """
    return ResNet(_SMALL, classes, in_channels=in_channels, small_images=True, halved=True)
