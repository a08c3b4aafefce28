"""ResNets against the key structure, sizes and forward pass that torchvision documents."""

import pytest
import torch
import torch.nn.functional as F

from sslfast.models import create, resnet18, resnet50
from sslfast.models.resnet import BasicBlock, Bottleneck, ResNet

# torchvision's name: (depths of the stages, convolutions of a block, expansion, groups, width of a
# group over that of a plain bottleneck, parameters as documented)
ARCHITECTURES = {
    "resnet18": ((2, 2, 2, 2), 2, 1, 1, 1, 11_689_512),
    "resnet34": ((3, 4, 6, 3), 2, 1, 1, 1, 21_797_672),
    "resnet50": ((3, 4, 6, 3), 3, 4, 1, 1, 25_557_032),
    "resnet101": ((3, 4, 23, 3), 3, 4, 1, 1, 44_549_160),
    "resnet152": ((3, 8, 36, 3), 3, 4, 1, 1, 60_192_808),
    "wide_resnet50_2": ((3, 4, 6, 3), 3, 4, 1, 2, 68_883_240),
    "wide_resnet101_2": ((3, 4, 23, 3), 3, 4, 1, 2, 126_886_696),
    "resnext50_32x4d": ((3, 4, 6, 3), 3, 4, 32, 4 / 64, 25_028_904),
    "resnext101_32x8d": ((3, 4, 23, 3), 3, 4, 32, 8 / 64, 88_791_336),
    "resnext101_64x4d": ((3, 4, 23, 3), 3, 4, 64, 4 / 64, 83_455_272),
}


def norm_shapes(prefix, channels):
    shapes = {f"{prefix}.{name}": (channels,) for name in ("weight", "bias")}
    shapes |= {f"{prefix}.running_{name}": (channels,) for name in ("mean", "var")}
    return shapes | {f"{prefix}.num_batches_tracked": ()}


def documented_shapes(name, num_classes=1000):
    """Key -> shape of torchvision's state_dict, by the rule that its names follow."""
    depths, convolutions, expansion, groups, part, _ = ARCHITECTURES[name]
    shapes = {"conv1.weight": (64, 3, 7, 7)} | norm_shapes("bn1", 64)
    fan_in = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for index in range(depth):
            block = f"layer{stage + 1}.{index}"
            if convolutions == 2:
                kernels = [(width, fan_in, 3), (width, width, 3)]
            else:
                inner = int(width * part) * groups
                kernels = [(inner, fan_in, 1), (inner, inner, 3), (4 * width, inner, 1)]
            for number, (out, channels, size) in enumerate(kernels, start=1):
                channels = channels // groups if size == 3 else channels
                shapes[f"{block}.conv{number}.weight"] = (out, channels, size, size)
                shapes |= norm_shapes(f"{block}.bn{number}", out)
            out = width * expansion
            if index == 0 and (stage > 0 or fan_in != out):
                shapes[f"{block}.downsample.0.weight"] = (out, fan_in, 1, 1)
                shapes |= norm_shapes(f"{block}.downsample.1", out)
            fan_in = out
    if num_classes:
        shapes |= {"fc.weight": (num_classes, fan_in), "fc.bias": (num_classes,)}
    return shapes


def shapes_of(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_and_parameter_count_are_torchvisions(name):
    with torch.device("meta"):  # shapes only
        model = create(name, num_classes=1000)
    assert shapes_of(model) == documented_shapes(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == ARCHITECTURES[name][-1]


def test_encoder_loads_a_classifiers_weights_but_fc():
    encoder, classifier = create("resnet18"), create("resnet18", num_classes=1000)
    result = encoder.load_state_dict(classifier.state_dict(), strict=False)
    assert result.missing_keys == []
    assert sorted(result.unexpected_keys) == ["fc.bias", "fc.weight"]
    assert shapes_of(encoder) == documented_shapes("resnet18", num_classes=0)


# Short ones of every kind of block: (block, depths, its keywords).
SHORT = {
    "basic": (BasicBlock, (2, 1, 1, 2), {}),
    "bottleneck": (Bottleneck, (1, 2, 1, 1), {}),
    "grouped": (Bottleneck, (1, 1, 2, 1), {"groups": 32, "width_per_group": 4}),
}


def plain_forward(weights, images, depths, convolutions, training, cifar_stem=False):
    """ResNet v1.5 from its state_dict; norms use batch statistics where ``training``."""

    def conv(x, key, stride=1):
        kernel = weights[f"{key}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)

    def norm(x, key):
        gain, shift, mean, variance = (
            weights[f"{key}.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if training:
            mean = x.mean((0, 2, 3), keepdim=True)
            variance = x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift

    x = norm(conv(images, "conv1", stride=1 if cifar_stem else 2), "bn1").relu()
    if not cifar_stem:
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = f"layer{stage + 1}.{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            strided = (
                convolutions - 1
            )  # the 3x3 that strides: the first of two, the second of three
            out = x
            for number in range(1, convolutions + 1):
                out = conv(out, f"{block}.conv{number}", stride if number == strided else 1)
                out = norm(out, f"{block}.bn{number}")
                out = out.relu() if number < convolutions else out
            if f"{block}.downsample.0.weight" in weights:
                x = norm(conv(x, f"{block}.downsample.0", stride), f"{block}.downsample.1")
            x = (x + out).relu()
    x = x.mean((2, 3))
    return x @ weights["fc.weight"].T + weights["fc.bias"] if "fc.weight" in weights else x


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(("cifar_stem", "training"), [(False, True), (True, False)])
def test_forward_equals_a_plain_functional_one(name, cifar_stem, training):
    torch.manual_seed(0)
    num_classes = 0 if cifar_stem else 7
    block, depths, inner = SHORT[name]
    shape = {"num_classes": num_classes, "cifar_stem": cifar_stem, "inner": inner}
    model = ResNet(block, depths, **shape).double().train(training)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics and gains other than 0 and 1
                for vector in (module.weight, module.running_var):
                    vector.uniform_(0.5, 1.5)
                for vector in (module.bias, module.running_mean):
                    vector.normal_(std=0.1)
        images = torch.randn(3, 3, 24, 40).double()
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        convolutions = 2 if block is BasicBlock else 3
        expected = plain_forward(weights, images, depths, convolutions, training, cifar_stem)
        actual = model(images)
    assert actual.shape == (3, num_classes or model.num_features)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_cifar_stem_keeps_the_resolution_up_to_the_first_stage():
    seen = []
    model = resnet18(cifar_stem=True).eval()
    model.layer1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert seen == [(2, 64, 32, 32)]
    assert model.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize("factory", [resnet18, resnet50])
def test_zero_init_residual_makes_blocks_the_identity(factory):
    block = factory(zero_init_residual=True).layer1[1]
    x = torch.randn(2, block.conv1.in_channels, 8, 8).relu()
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    plain = factory().layer1[1]
    assert (plain(x) - x).abs().max() > 0.1


def test_initial_convolutions_are_he_normal_over_fan_out():
    torch.manual_seed(0)
    weight = resnet18().layer4[0].conv1.weight  # 256 -> 512
    assert float(weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_in_channels():
    model = resnet18(in_channels=1, cifar_stem=True).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 28, 28)).shape == (2, 512)
