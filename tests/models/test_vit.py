"""Vision Transformers: timm's names and numerics, visible patches, videos, other image sizes."""

import inspect
import json
import re
from functools import cache, partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

import peers
from sslfast import models
from sslfast.masking import random_mask
from sslfast.models.positions import fit_positions, resize_positions, sincos_positions
from sslfast.models.transformer import DropPath

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

timm = cache(partial(peers.timm_model, "vision_transformer"))


def small(**changes):
    torch.manual_seed(0)
    return models.vit(**{**SMALL, **changes})


def shaken(model):
    """Weights none of which is 0 or 1, so that none can be left out unnoticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.double().eval()


def entry_points():
    """Keywords of timm's ViTs by name, sizes aside, and without those that differ in sizes only."""
    made = {}

    def record(name, pretrained=False, **keywords):
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        shape = {key: value for key, value in keywords.items() if key not in sizes}
        made.setdefault(str(sorted(shape.items(), key=str)), (name, shape))

    with mock.patch.object(timm(), "_create_vision_transformer", record):
        every = [f for f in vars(timm()).values() if inspect.isfunction(f)]
        every = [f for f in every if "VisionTransformer" in str(f.__annotations__.get("return"))]
        for function in every:
            function()
    return dict(made.values()), len(every)


def test_the_page_names_the_keywords_of_released_weights():
    page = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "masked.md").read_text()
    rows = re.findall(r"^\| .+ \| `(\w+)` \| `(vit\w*)` \| `(\{.*\})` \|$", page, re.MULTILINE)
    assert len(rows) == 9
    with mock.patch.object(
        timm(), "_create_vision_transformer", lambda *_, pretrained, **given: given
    ):
        for name, model, given in rows:
            needed = {"img_size": 224, "num_classes": 0, **by_name(getattr(timm(), name)())}
            sizes = inspect.signature(getattr(models, model)).parameters
            ours = {key: value.default for key, value in sizes.items()} | json.loads(given)
            missing = {key: value for key, value in needed.items() if ours[key] != value}
            assert set(missing) <= {"img_size"}, (name, missing)  # known to timm's settings only
            usual = inspect.signature(models.vit).parameters
            extra = {
                k for k in json.loads(given) if k not in needed and ours[k] != usual[k].default
            }
            assert not extra, (name, extra)


def by_name(keywords):
    """timm's keywords as a file of settings can hold them: layers by name."""
    layer, mlp = keywords.get("norm_layer"), keywords.get("mlp_layer")
    named = {key: value for key, value in keywords.items() if not callable(value)}
    if isinstance(layer, partial):
        named["norm_eps"] = layer.keywords["eps"]
    if "RmsNorm" in str(layer):
        named["norm_layer"] = "rmsnorm"
    if mlp:
        named["mlp_layer"] = "swiglu" if mlp is timm().SwiGLU else "swiglu_packed"
    if "embed_norm_layer" in keywords:
        named["embed_norm_layer"] = "rmsnorm"
    return named


def assert_same(ours, theirs, images):
    """Both ways strictly, the same tokens, features and logits."""
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        found = ours.forward_features(images)
        torch.testing.assert_close(found, tokens, rtol=1e-9, atol=1e-9)
        for early in (True, False):
            features = ours.forward_head(found, early), theirs.forward_head(tokens, early)
            torch.testing.assert_close(*features, rtol=1e-9, atol=1e-9)


def test_every_vit_of_timm_loads_and_gives_the_same_output():
    """DINOv2, CLIP, SigLIP, MAE, I-JEPA, AIMv2 and all others, by name where names are enough."""
    configurations, number = entry_points()
    assert number > 150
    foreign = set()
    for name, keywords in configurations.items():
        given = by_name(keywords)
        if "block_fn" in keywords or "attn_layer" in keywords:  # timm's own layers, as they are
            foreign.add(name)
            layers = {"block_fn": timm().Block, "mlp_layer": timm().Mlp}
            given = {**layers, "attn_layer": timm().Attention, **keywords}
        ours = shaken(small(**given, num_classes=3, depth=1))
        theirs = timm().VisionTransformer(**{**SMALL, **keywords, "num_classes": 3, "depth": 1})
        assert_same(ours, theirs.double().eval(), torch.randn(2, 3, 32, 32).double())
    assert len(foreign) == 7 < len(configurations) // 5, foreign


CONFIGURATIONS = {
    "class token": {"num_classes": 5},
    "mean token": {"global_pool": "avg", "class_token": False, "num_classes": 5},
    "mean token, norm before": {"global_pool": "avg", "fc_norm": False},
    "registers, layer scale, norms of q and k": {
        **{"reg_tokens": 4, "init_values": 0.1, "qk_norm": True, "num_classes": 3},
    },
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True, "qkv_bias": False},
    "no biases, oblong": {"proj_bias": False, "img_size": (16, 24), "patch_size": (8, 4)},
    "largest token, prefix too": {
        **{"global_pool": "max", "reg_tokens": 2, "pool_include_prefix": True, "fc_norm": False},
    },
    "half largest, half mean": {"global_pool": "avgmax", "class_token": False},
    "all tokens": {"global_pool": "", "num_classes": 2, "act_layer": "relu"},
    "grey, no norm, no positions": {"in_chans": 1, "final_norm": False, "pos_embed": "none"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_load_in_timm_and_give_the_same_output(name):
    keywords = CONFIGURATIONS[name]
    ours = shaken(small(**keywords))
    theirs = timm().VisionTransformer(**{**SMALL, "num_classes": 0, **keywords}).double().eval()
    images = torch.randn(3, keywords.get("in_chans", 3), *ours.img_size).double()
    assert_same(ours, theirs, images)


def test_clip_siglip_and_dinov2_by_hand():
    """The same configurations, spelled as the page says: a wrong default would be in both."""
    clip = small(pre_norm=True, act_layer="quick_gelu", norm_eps=1e-5)
    assert clip.patch_embed.proj.bias is None
    assert clip.norm_pre.eps == clip.norm.eps == clip.blocks[0].norm1.eps == 1e-5
    x = torch.randn(3)
    torch.testing.assert_close(clip.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x))
    giant = small(mlp_layer="swiglu_packed", mlp_ratio=2.66667 * 2, init_values=1)
    assert giant.blocks[0].ls1.gamma.eq(1).all()
    mlp, x = giant.blocks[0].mlp, torch.randn(2, 5, 32)
    gate, linear = (x @ mlp.fc1.weight.T + mlp.fc1.bias).chunk(2, -1)
    expected = mlp.fc2(torch.nn.functional.silu(gate) * linear)
    torch.testing.assert_close(mlp(x), expected)
    siglip = shaken(small(global_pool="map", class_token=False, act_layer="gelu_tanh"))
    tokens = torch.randn(2, 5, 32).double()
    pooled = siglip.pool(tokens)
    assert pooled.shape == (2, 32)
    torch.testing.assert_close(siglip.pool(tokens.flip(1)), pooled)  # a set of tokens


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("indices", [None, 2, [0, -1], (1,)])
def test_intermediates_are_timms(indices, norm):
    keywords = {"depth": 3, "reg_tokens": 1, "dynamic_img_size": True}
    ours = shaken(small(**keywords))
    theirs = timm().VisionTransformer(**{**SMALL, **keywords, "num_classes": 0}).double().eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 40).double()
    early = {"stop_early": True, "return_prefix_tokens": True, "output_fmt": "NLC"}
    with torch.no_grad():
        for given in ({"norm": norm}, {"norm": norm, **early}):
            found, expected = (
                m.forward_intermediates(images, indices, **given) for m in (ours, theirs)
            )
            torch.testing.assert_close(found, expected)
        layers = {"reshape": norm, "norm": norm}
        found, expected = (
            m.get_intermediate_layers(images, indices or 1, **layers) for m in (ours, theirs)
        )
        torch.testing.assert_close(found, expected)
    for wrong in (0, 4, [3], [-4], []):
        with pytest.raises(ValueError, match="the model has 3 blocks: there are none of"):
            ours.forward_intermediates(images, wrong)


def test_intermediates_of_videos_are_grids():
    model = small(num_frames=4)
    last, (only,) = model.forward_intermediates(torch.randn(2, 3, 4, 32, 32), 1, norm=True)
    assert only.shape == (2, 32, 2, 4, 4)
    torch.testing.assert_close(only.flatten(2).transpose(1, 2), last[:, 1:])


def test_reset_classifier():
    model = small(global_pool="map").double().eval()
    images = torch.randn(2, 3, 32, 32).double()
    with pytest.raises(ValueError, match="global_pool must be one of"):
        model.reset_classifier(3, "sum")
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert not model.head.training
    tokens = model.forward_features(images)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(images), tokens[:, 1:].mean(1))
    assert not any("attn_pool" in key for key in model.state_dict())
    with pytest.raises(ValueError, match='build the model with global_pool="map"'):
        model.reset_classifier(3, "map")
    with pytest.raises(ValueError, match="needs a class token"):
        small(class_token=False, global_pool="avg").reset_classifier(3, "token")


def test_weights_begin_as_published():
    wide = {"embed_dim": 128, "mlp_ratio": 2}

    def deviation(weight, expected):
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.06)

    model = small(**wide)
    deviation(model.blocks[1].attn.proj.weight, 0.02)
    assert model.cls_token.abs().max() < 1e-4
    mae = small(**wide, weight_init="mae", reg_tokens=1)
    for layer in (mae.blocks[0].attn.qkv, mae.blocks[1].mlp.fc2):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    proj = mae.patch_embed.proj.weight.flatten(1)
    deviation(proj, (2 / sum(proj.shape)) ** 0.5)
    assert 0.01 < mae.cls_token.std() < 0.03
    for keywords in ({"weight_init": "beit"}, {"fix_init": True}):
        deep = small(**wide, **keywords)
        for n, block in enumerate(deep.blocks, start=1):
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                deviation(weight, 0.02 / (2 * n) ** 0.5)
            deviation(block.mlp.fc1.weight, 0.02)
        assert (deep.cls_token.std() > 1e-3) == ("weight_init" in keywords)


def test_other_image_sizes_are_timms():
    ours = shaken(small(dynamic_img_size=True)).float()
    theirs = timm().VisionTransformer(**SMALL, num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"no whole number of patches of \[8, 8\]"):
        ours(torch.randn(2, 3, 36, 40))
    with pytest.raises(ValueError, match=r"for images of \[32, 32\], got \[48, 40\]: resize them"):
        small()(images)


# Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021, table 1: without the classifier.
@pytest.mark.parametrize(
    ("name", "timm_name", "parameters"),
    [
        ("vit_tiny", "vit_tiny_patch16_224", 5_524_416),
        ("vit_small", "vit_small_patch16_224", 21_665_664),
        ("vit_base", "vit_base_patch16_224", 85_798_656),
        ("vit_large", "vit_large_patch16_224", 303_301_632),
        ("vit_huge", "vit_huge_patch14_224", 630_764_800),
    ],
)
def test_sizes_are_timms(name, timm_name, parameters):
    with torch.device("meta"):
        ours = models.create(name)
        theirs = getattr(timm(), timm_name)(num_classes=0)
    shapes, expected = (
        {key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)
    )
    assert shapes == expected
    assert sum(p.numel() for p in ours.parameters()) == parameters


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"embed_norm_layer": "rmsnorm", "pre_norm": True},
        {"pos_embed": "rope", "reg_tokens": 2},
    ],
)
def test_all_patches_in_any_order_are_the_whole_image(keywords):
    model = shaken(small(**keywords))
    images = torch.randn(2, 3, 32, 32).double()
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    prefix = model.num_prefix_tokens
    with torch.no_grad():
        whole = model.forward_features(images)
        shuffled = model.forward_features(images, order)
    at = order[..., None].expand(-1, -1, whole.shape[2])
    torch.testing.assert_close(shuffled[:, prefix:], whole[:, prefix:].gather(1, at))
    torch.testing.assert_close(shuffled[:, :prefix], whole[:, :prefix])


def test_hidden_patches_are_not_seen():
    model = shaken(small())
    images = torch.randn(2, 3, 32, 32).double().requires_grad_()
    mask = random_mask(2, 16, 0.75, seed=1)
    tokens = model.forward_features(images, mask.ids_keep)
    assert tokens.shape == (2, 1 + 4, 32)
    tokens.square().sum().backward()
    touched = images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((1, 4, 5)).flatten(1) > 0
    assert torch.equal(touched, ~mask.mask)


def test_videos_in_tubelets():
    model = shaken(small(num_frames=4, pos_embed="sincos"))
    assert model.grid_size == (2, 4, 4)
    videos = torch.randn(2, 3, 4, 32, 32).double()
    ids = torch.arange(32).expand(2, -1)
    with torch.no_grad():
        whole = model.forward_features(videos)
        assert whole.shape == (2, 33, 32)
        torch.testing.assert_close(model.forward_features(videos, ids), whole)
        # A patch of the second tubelet, by hand.
        block = videos[:, :, 2:4, 8:16, 24:32].flatten(1)
        weight = model.patch_embed.proj.weight.flatten(1)
        patch = block @ weight.T + model.patch_embed.proj.bias
        place = 16 + 1 * 4 + 3
        expected = patch + model.pos_embed[0, 1 + place]
        torch.testing.assert_close(model.embed(videos)[:, place], expected)
    assert model(videos).shape == (2, 32)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_drop_path_rate_is_a_probability_below_1(rate):
    with pytest.raises(ValueError, match=r"drop_path_rate must be .*, got"):
        small(drop_path_rate=rate)


def test_checkpointing_changes_memory_only():
    keywords = {"drop_path_rate": 0.5, "init_values": 0.1, "reg_tokens": 1}
    plain = small(**keywords).double()
    saved = small(**keywords, grad_checkpointing=True).double()
    images = torch.randn(4, 3, 32, 32).double()
    for model in (plain, saved):
        torch.manual_seed(1)  # the same branches are dropped, also when they are computed again
        model(images).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(saved.get_parameter(name).grad, parameter.grad)
    saved.set_grad_checkpointing(False)
    assert not saved.grad_checkpointing


def test_visible_patches_compile_in_one_graph_and_autocast():
    model = small().eval()
    images = torch.randn(2, 3, 32, 32)
    ids = random_mask(2, 16, 0.5, seed=1).ids_keep
    run = torch.compile(model.forward_features, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model.forward_features(images, ids)
        torch.testing.assert_close(run(images, ids), expected)
        torch.compiler.reset()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.forward_features(images, ids)
    assert rounded.dtype == torch.float32
    assert (rounded - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_dtypes_with_and_without_hidden_patches(dtype):
    model = shaken(small(reg_tokens=2, init_values=0.1, qk_norm=True))
    images, ids = torch.randn(2, 3, 32, 32).double(), random_mask(2, 16, 0.5, seed=1).ids_keep
    with torch.no_grad():
        expected = [model.forward_features(images, keep) for keep in (None, ids)]
        model.to(dtype)
        for keep, exact in zip((None, ids), expected, strict=True):
            found = model.forward_features(images.to(dtype), keep)
            assert found.dtype == dtype
            assert (found - exact).norm() < 20 * torch.finfo(dtype).eps * exact.norm()


def test_an_empty_batch():
    model = small()
    empty = torch.empty(0, 3, 32, 32)
    assert model(empty).shape == (0, 32)
    assert model.forward_features(empty, torch.empty(0, 4).long()).shape == (0, 5, 32)


def test_drop_path_drops_whole_samples_and_keeps_the_mean(generator):
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    y = DropPath(0.25)(x)
    assert set(y.flatten().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(float(y.mean()) - 1) < 0.05  # more than six standard deviations
    assert DropPath(0.25).eval()(x) is x
    rates = [block.drop_path1.rate for block in small(depth=3, drop_path_rate=0.2).blocks]
    assert rates == [0, 0.1, 0.2]


def test_sincos_positions_are_the_published_formula():
    table = sincos_positions(8, (3, 5)).double()
    for row, column in ((0, 0), (2, 1), (1, 4)):
        angles = [axis / 10_000**power for axis in (column, row) for power in (0, 0.5)]
        x = torch.tensor(angles).double().view(2, 2)
        expected = torch.cat([x[0].sin(), x[0].cos(), x[1].sin(), x[1].cos()])
        torch.testing.assert_close(table[row * 5 + column], expected, rtol=1e-6, atol=1e-6)
    video = sincos_positions(6, (2, 3, 4)).double()
    angle = 17 / 10_000 ** (2 / 6)
    torch.testing.assert_close(
        video[17, 2:4],
        torch.tensor([angle])
        .double()
        .sin()
        .new_tensor([torch.tensor(angle).sin(), torch.tensor(angle).cos()]),
        rtol=1e-6,
        atol=1e-6,
    )
    model = small(pos_embed="sincos")
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0, 1:], sincos_positions(32, (4, 4)))
    assert not model.pos_embed[0, 0].any()
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_positions(6, (2, 2))


def test_positions_keep_constants_and_frames():
    table = torch.randn(1, 2 * 9, 4)[:, :1].repeat(1, 18, 1)
    resized = resize_positions(table, (2, 3, 3), (2, 5, 4))
    torch.testing.assert_close(resized, table[:, :1].expand(-1, 40, -1))
    with pytest.raises(ValueError, match="for 2 frames of patches, not for 3"):
        resize_positions(table, (2, 3, 3), (3, 3, 3))


@pytest.mark.parametrize("keywords", [{"reg_tokens": 2}, {"no_embed_class": True}])
def test_positions_of_another_image_size_are_fitted_as_timm_does(keywords):
    weights = shaken(small(**keywords)).float().state_dict()
    oblong = {**SMALL, **keywords, "img_size": (48, 40), "num_classes": 0}
    model, theirs = models.vit(**oblong), timm().VisionTransformer(**oblong)
    prefix = model.embedded_prefix
    fitted = fit_positions(weights["pos_embed"], model.grid_size, prefix)
    assert fitted.shape == model.pos_embed.shape
    expected = timm().checkpoint_filter_fn(weights, theirs)["pos_embed"]
    torch.testing.assert_close(fitted, expected, rtol=1e-5, atol=1e-5)
    assert fit_positions(fitted, model.grid_size, prefix) is fitted
    with pytest.raises(ValueError, match=r"30 positions are no square .* to 4 x 4: were the"):
        fit_positions(fitted[:, :30], (4, 4))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"img_size": 30}, r"\[30, 30\] are no whole number of patches of \[8, 8\]"),
        ({"img_size": 4}, "no whole number"),
        ({"num_heads": 5}, "cannot be split over 5 heads"),
        ({"class_token": False}, 'use global_pool="avg"'),
        ({"global_pool": "prr"}, "global_pool must be one of token, avg, .* got 'prr'"),
        ({"weight_init": "jax"}, "weight_init must be one of"),
        ({"act_layer": "gelutanh"}, "act_layer must be one of .* Did you mean 'gelu_tanh'"),
        ({"norm_layer": "batch"}, "norm_layer must be one of layernorm, rmsnorm"),
        ({"mlp_layer": "glu"}, "mlp_layer must be one of mlp, swiglu"),
        ({"attn_layer": "diff"}, "attn_layer must be one of"),
        ({"mlp_layer": "swiglu_packed", "mlp_ratio": 1.1}, "even hidden width, got 35"),
        ({"pos_embed": "rotary"}, "pos_embed must be one of learn, sincos, rope"),
        ({"num_frames": 3}, "no whole number"),
    ],
)
def test_wrong_keywords_are_explained(keywords, message):
    with pytest.raises(ValueError, match=message):
        small(**keywords)


def test_gradients_reach_all_parameters():
    model = small(reg_tokens=2, init_values=0.1, qk_norm=True, num_classes=3)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert isinstance(small().head, nn.Identity)
