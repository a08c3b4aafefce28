"""ResNet encoders with the state_dict names, shapes and numerics of torchvision's.

He et al. 2016, arXiv:1512.03385; the bottleneck strides in its 3x3 convolution ("v1.5"). Wide ones:
Zagoruyko and Komodakis 2016, arXiv:1605.07146; ResNeXt: Xie et al. 2017, arXiv:1611.05431.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

from torch import Tensor, nn

from sslfast._arguments import Range, Width, checked
from sslfast.models.registry import register


def _conv3x3(in_channels: int, channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def _conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a residual block's input, or None where the identity fits."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18, -34).

    Args:
        in_channels: of the input.
        width: of the output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that ends the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions and a shortcut (ResNet-50 and deeper).

    Args:
        in_channels: of the input.
        width: a quarter of the output's channels.
        stride: of the 3x3 convolution.
        groups: of the 3x3 convolution (ResNeXt).
        width_per_group: channels of a group of it where ``width`` is 64, and in proportion.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        channels, inner = width * self.expansion, width * width_per_group // 64 * groups
        self.conv1 = _conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv1x1(inner, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that ends the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network: stem, four stages, global average pool, optional classifier.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        in_channels: channels of the images.
        num_classes: 0 makes an encoder (``fc`` is the identity); otherwise ``fc`` is linear, as in
            torchvision.
        cifar_stem: a 3x3 stride-1 ``conv1`` and no max pool, for images of about 32 x 32
            (SimCLR, arXiv:2002.05709, appendix B.9).
        zero_init_residual: start the last norm of every block at 0, so that blocks start as the
            identity (arXiv:1706.02677, section 5.1).
        inner: further keywords of every Bottleneck: groups and width_per_group.

    Attributes:
        num_features: F, the width of the pooled features.
    """

    @checked
    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        in_channels: Width = 3,
        num_classes: Annotated[int, Range(0, 2**24)] = 0,
        cifar_stem: bool = False,
        zero_init_residual: bool = False,
        inner: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_features: int = 512 * block.expansion
        stage = partial(_stage, block, inner or {})
        if cifar_stem:
            self.conv1 = _conv3x3(in_channels, 64)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> features [B, F], or logits [B, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inner: Mapping[str, int],
    in_channels: int,
    width: int,
    depth: int,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, width, stride, **inner)
    out = width * block.expansion
    return nn.Sequential(first, *(block(out, width, **inner) for _ in range(depth - 1)))


def _named(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    **inner: int,
) -> Callable[..., ResNet]:
    """A published architecture, registered under torchvision's name."""

    def build(
        in_channels: int = 3,
        num_classes: int = 0,
        cifar_stem: bool = False,
        zero_init_residual: bool = False,
    ) -> ResNet:
        return ResNet(
            block,
            depths,
            in_channels=in_channels,
            num_classes=num_classes,
            cifar_stem=cifar_stem,
            zero_init_residual=zero_init_residual,
            inner=inner,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{name}: images [B, in_channels, H, W] -> [B, {512 * block.expansion}].

    ``load_state_dict`` takes torchvision's weights: with ``num_classes=1000`` all of them, with the
    default 0 all but ``fc`` (``strict=False``). See ResNet for the keywords.
    """
    return register(build)


resnet18 = _named("resnet18", BasicBlock, (2, 2, 2, 2))
resnet34 = _named("resnet34", BasicBlock, (3, 4, 6, 3))
resnet50 = _named("resnet50", Bottleneck, (3, 4, 6, 3))
resnet101 = _named("resnet101", Bottleneck, (3, 4, 23, 3))
resnet152 = _named("resnet152", Bottleneck, (3, 8, 36, 3))
wide_resnet50_2 = _named("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), width_per_group=128)
wide_resnet101_2 = _named("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), width_per_group=128)
resnext50_32x4d = _named("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4)
resnext101_32x8d = _named(
    "resnext101_32x8d", Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8
)
resnext101_64x4d = _named(
    "resnext101_64x4d", Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4
)
