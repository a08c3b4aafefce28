"""What every registered encoder promises, and the registry itself."""

import inspect

import pytest
import torch

from sslfast import models
from sslfast.models.registry import register

# One of each class; the sizes of vit_micro's and resnet18's are in test_vit.py and test_resnet.py.
ENCODERS = ("convnet_small", "resnet18", "vit_micro")


def test_every_class_of_encoder_is_tried():
    with torch.device("meta"):
        tried = {type(models.create(name)) for name in ENCODERS}
        assert tried == {type(models.create(name)) for name in models.names()}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return models.create(request.param)


def test_features_have_num_features_columns_and_gradients_reach_all_parameters(encoder):
    features = encoder(torch.randn(4, 3, 32, 32))
    assert features.shape == (4, encoder.num_features)
    assert type(encoder.num_features) is int
    features.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:  # fixed positions
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_one_channel_and_odd_sizes():
    with torch.device("meta"):  # shapes only
        for name in ("convnet_small", "resnet18", "resnet50"):
            encoder = models.create(name, in_channels=1)
            assert encoder(torch.empty(2, 1, 29, 37)).shape == (2, encoder.num_features)


def test_compiles_in_one_graph(encoder):
    encoder.eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), encoder(images), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_channels_last_gives_the_same_features(encoder):
    encoder.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images)
        encoder.to(memory_format=torch.channels_last)
        actual = encoder(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_bf16_autocast_stays_close_to_float32(encoder):
    images = torch.randn(8, 3, 32, 32)
    encoder.eval()  # with batch statistics, eight samples would multiply the rounding
    with torch.no_grad():
        expected = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        actual = encoder(images)
    actual.float().sum().backward()
    error = (actual.detach().float() - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    grads = [p.grad for p in encoder.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_names_are_sorted_and_factories_spell_out_their_keywords():
    assert models.names() == sorted(models.names())
    assert {"convnet_small", "resnet18", "resnet50"} <= set(models.names())
    for name in ("convnet_small", "resnet18", "resnet50"):
        parameters = inspect.signature(getattr(models, name)).parameters.values()
        assert all(parameter.default is not parameter.empty for parameter in parameters)


def test_create_passes_keywords_on():
    assert models.create("resnet18", num_classes=5).fc.out_features == 5


def test_unknown_name_suggests_the_nearest_and_lists_all():
    with pytest.raises(ValueError, match=r"'resnet51'.*convnet_small.*Did you mean 'resnet50'"):
        models.create("resnet51")
    with pytest.raises(ValueError, match=r"unknown encoder 'zzz'; known, .*: \[.*\]\.$"):
        models.create("zzz")


def test_unknown_keyword_suggests_the_nearest_and_lists_all():
    with pytest.raises(TypeError, match=r"'cifar_stm'.*in_channels.*Did you mean 'cifar_stem'"):
        models.create("resnet18", cifar_stm=True)


def test_a_name_is_registered_once():
    def resnet18():
        return torch.nn.Identity()

    with pytest.raises(ValueError, match="already registered"):
        register(resnet18)


@pytest.mark.parametrize(("width", "depth"), [(0, 4), (32, 0)])
def test_convnet_refuses_empty_shapes(width, depth):
    with pytest.raises(ValueError, match="at least 1"):
        models.convnet_small(width=width, depth=depth)


def test_convnet_small_is_small():
    encoder = models.convnet_small()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 209_328
    assert encoder.num_features == 192


def test_convnet_pools_over_the_whole_image():
    """Features of an image in evaluation mode do not depend on the rest of the batch."""
    encoder = models.convnet_small().eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
