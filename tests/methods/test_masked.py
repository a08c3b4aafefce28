"""Masked methods against their papers' formulas written out, and what they promise."""

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokens import needed, toy_tokenizer
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sslfast import methods, models
from sslfast.data import recipe
from sslfast.data.batch import Batch
from sslfast.masking import PatchMask, block_mask, multiblock_mask, random_mask
from sslfast.methods.base import Context, Method, Progress
from sslfast.models import Decoder, Predictor
from sslfast.models.patches import patchify, unpatchify
from sslfast.optim import AdamW

NAMES = ("beit", "ijepa", "mae", "simmim")


def small(
    name: str,
    dtype: torch.dtype = torch.float64,
    depth: int = 2,
    pos_embed: str = "sincos",
    **keywords: Any,
) -> Method:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 2}
    encoder = models.create("vit_micro", **shape, pos_embed=pos_embed)
    return methods.create(name, encoder, **{**needed(name), **keywords}).to(dtype).train()


def batch_of(ids: list[int], dtype: torch.dtype = torch.float64) -> Batch:
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(5)).to(dtype)
    return Batch((images[ids],), torch.tensor(ids))


def patches_by_hand(images: Tensor) -> Tensor:
    """[B, 64, 48] of images [B, 3, 32, 32] in patches of 4."""
    return F.unfold(images, 4, stride=4).transpose(1, 2)


def test_patches_come_back_and_are_unfolds(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 8, 12, generator=generator)
    patches = patchify(images, (2, 4))
    torch.testing.assert_close(patches, F.unfold(images, (2, 4), stride=(2, 4)).transpose(1, 2))
    assert torch.equal(unpatchify(patches, (2, 4), (4, 3)), images)


@pytest.mark.parametrize("name", NAMES)
def test_rotary_positions_are_positions(name: str) -> None:
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    rotary, without = (small(name, pos_embed=kind) for kind in ("rope", "none"))
    with torch.no_grad():
        for block in (*rotary.encoder.blocks, *without.encoder.blocks):
            block.attn.qkv.weight.mul_(10)  # so that attention is not even
    loss = rotary(batch, ctx)["loss"]
    assert abs(loss - without(batch, ctx)["loss"]) > 1e-9  # float64
    loss.backward()
    grad = rotary.encoder.blocks[0].attn.qkv.weight.grad
    assert grad.isfinite().all()
    assert grad.any()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_mae_is_the_error_of_hidden_patches(norm_pix: bool) -> None:
    method = small("mae", norm_pix=norm_pix, decoder_depth=1)
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    loss = method(batch, ctx)["loss"]

    images = batch.views[0]
    mask = random_mask(3, 64, 0.75, seed=2, step=7, sample_ids=batch.sample_ids)
    tokens, decoder = method.encoder.forward_features(images), method.decoder
    assert tokens.shape == (3, 64, 32)
    # The encoder, by hand, on the visible tokens alone.
    at = mask.ids_keep[..., None].expand(-1, -1, 32)
    visible = method.encoder.transform(method.encoder.embed(images).gather(1, at))
    x = decoder.mask_token.expand(3, 64, -1).clone()
    x = x.scatter(1, at[..., :16], decoder.embed(visible)) + decoder.positions
    prediction = decoder.head(decoder.norm(decoder.blocks(x)))
    target = patches_by_hand(images)
    if norm_pix:
        spread = (target.var(-1, keepdim=True) + 1e-6).sqrt()
        target = (target - target.mean(-1, keepdim=True)) / spread
    expected = (prediction - target).square().mean(-1)[mask.mask].mean()
    assert mask.mask.sum(1).tolist() == [48] * 3
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_simmim_is_the_absolute_error_of_hidden_squares() -> None:
    method = small("simmim")
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    loss = method(batch, ctx)["loss"]

    images = batch.views[0]
    squares = random_mask(3, 16, 0.6, seed=2, step=7, sample_ids=batch.sample_ids).mask
    mask = F.interpolate(squares.view(3, 1, 4, 4).float(), scale_factor=2).bool().flatten(1)
    assert mask.sum(1).tolist() == [4 * 10] * 3  # ceil(0.6 * 16) squares of 2 x 2
    tokens = method.encoder.patch_embed(images)
    tokens = torch.where(mask[..., None], method.mask_token, tokens) + method.encoder.pos_embed
    prediction = method.head(method.encoder.transform(tokens))
    expected = (prediction - patches_by_hand(images)).abs().mean(-1)[mask].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ratio", "squares"), [(0.8, 20), (0.6, 15), (0.25, 7)])
def test_simmim_hides_the_published_number_of_squares(ratio: float, squares: int) -> None:
    """ceil(ratio * squares) of 25, where 1 - (1 - ratio) would be one more."""
    encoder = models.vit_micro(img_size=20, patch_size=2, embed_dim=8, depth=1, num_heads=1)
    method = methods.create("simmim", encoder, mask_ratio=ratio)
    mask, shown = method.mask(batch_of([3, 4]), Context(7, 0, 10))
    assert mask.sum(1).tolist() == [4 * squares] * 2
    assert shown == 100 - 4 * squares


def test_beit_is_the_cross_entropy_of_hidden_tokens() -> None:
    method = small("beit")
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    loss = method(batch, ctx)["loss"]

    images = batch.views[0]
    drawn = {"min_patches": 5, "seed": 2, "step": 7, "sample_ids": batch.sample_ids}
    mask = block_mask(3, (8, 8), 24, **drawn).mask  # 75 of 196, in blocks of 16 and more
    patches, codebook = patches_by_hand(images), method.tokenizer.codebook
    spread = (patches.var(-1, keepdim=True) + 1e-2).sqrt()
    normed = (patches - patches.mean(-1, keepdim=True)) / spread
    codes = (normed[:, :, None] - codebook).square().sum(-1).argmin(-1)
    tokens = method.encoder.patch_embed(images)
    tokens = torch.where(mask[..., None], method.mask_token, tokens) + method.encoder.pos_embed
    logits = method.head(method.encoder.transform(tokens))
    torch.testing.assert_close(loss, F.cross_entropy(logits[mask], codes[mask]))

    halves = [method(batch_of(ids), ctx)["loss"] for ids in ([3, 9], [11])]
    torch.testing.assert_close((2 * halves[0] + halves[1]) / 3, loss)  # as two ranks have it
    loss.backward()
    assert method.mask_token.grad.abs().max() > 0
    assert not any(tensor.requires_grad for tensor in method.tokenizer.state_dict().values())


def test_the_encoder_of_beit_sees_no_hidden_pixel() -> None:
    method, ctx = small("beit"), Context(7, 0, 10, seed=2)
    batch = batch_of([3, 9, 11])
    hidden, tokens = method.encode(batch, ctx)
    patches = patchify(batch.views[0], (4, 4))
    mask = method.mask(batch, ctx).mask[..., None]
    other = unpatchify(torch.where(mask, -patches, patches), (4, 4), (8, 8))  # other textures
    hidden_too, other_tokens = method.encode(Batch((other,), batch.sample_ids), ctx)
    assert torch.equal(hidden, hidden_too)
    assert (tokens != other_tokens).double().mean() > 0.5


def test_ijepa_predicts_the_teachers_features_of_each_block() -> None:
    method = small("ijepa", predictor_depth=1)
    with torch.no_grad():  # so that teacher and student differ
        for parameter in method.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    values = method(batch, ctx)

    images, predictor = batch.views[0], method.predictor
    blocks = multiblock_mask(3, (8, 8), seed=2, step=7, sample_ids=batch.sample_ids)
    target = F.layer_norm(method.teacher.module.forward_features(images), (32,))
    losses = []
    for n in range(3):
        tokens = method.encoder.embed(images[n : n + 1])[:, blocks.context[n]]
        seen = predictor.embed(method.encoder.transform(tokens))
        seen = seen + predictor.positions[blocks.context[n]]
        for block in blocks.targets[n]:
            asked = predictor.mask_token + predictor.positions[block]
            x = predictor.blocks(torch.cat((seen, asked), 1))[:, len(blocks.context[n]) :]
            losses.append(F.smooth_l1_loss(predictor.head(predictor.norm(x))[0], target[n, block]))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(values["loss"], expected, rtol=1e-5, atol=1e-6)
    assert 0 < values["target_std"] < 2

    values["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.predictor.parameters())


def test_ijepa_with_vicregs_variance_and_covariance() -> None:
    """Of the means of the context's features, by their definition."""
    batch, ctx = batch_of([3, 9, 11, 12]), Context(7, 0, 10, seed=2)
    plain, method = small("ijepa", predictor_depth=1), small("ijepa", predictor_depth=1, vicreg=0.2)
    assert (plain.contrastive, method.contrastive) == (False, True)
    assert method.state_dict().keys() == plain.state_dict().keys()
    context = method.mask(batch, ctx).context
    means = method.encoder.forward_features(batch.views[0], context).mean(1)
    covariance = means.T.cov()
    variance = (1 - (covariance.diag() + 1e-4).sqrt()).clamp_min(0).mean()
    off_diagonal = (covariance - covariance.diag().diag()).square().sum() / 32
    expected = plain(batch, ctx)["loss"] + 0.2 * (12.5 * variance + off_diagonal)
    ours = method(batch, ctx)["loss"]
    torch.testing.assert_close(ours, expected)
    ours.backward()
    assert all(p.grad is not None for p in method.encoder.blocks.parameters())


def test_the_teacher_of_ijepa_follows_with_a_rising_momentum() -> None:
    method = small("ijepa", momentum=0.9)
    found = [method.schedules(Progress(step, 10, 2.5))["momentum"] for step in (0, 5, 10)]
    assert found == [0.9, 0.95, 1.0]
    before = method.teacher.module.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        method.encoder.blocks[0].mlp.fc1.weight.add_(1.0)
    (teacher,) = method.teachers()
    teacher.momentum = torch.tensor(0.75)  # as the trainer sets it, by the schedule
    AdamW(method.parameters(), lr=0.0, weight_decay=0.0, ema=teacher).step()
    after = teacher.module.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(after, before + 0.25)


def test_heads_are_an_option_and_32_wide_without() -> None:
    for name, option in (("mae", "decoder_heads"), ("ijepa", "predictor_heads")):
        wide = small(name, **{option.replace("heads", "dim"): 64})
        narrow = small(name, **{option.replace("heads", "dim"): 64, option: 8})
        part = option.split("_")[0]
        narrow.load_state_dict(wide.state_dict())  # the same weights, other heads
        for method, heads in ((wide, 2), (narrow, 8)):
            blocks = getattr(method, part).blocks
            assert {block.attn.num_heads for block in blocks} == {heads}
        batch, ctx = batch_of([3, 9]), Context(7, 0, 10, seed=2)
        assert wide(batch, ctx)["loss"] != narrow(batch, ctx)["loss"]
        with pytest.raises(ValueError, match="a width of 64 cannot be split over 7 heads"):
            small(name, **{option.replace("heads", "dim"): 64, option: 7})


def test_decoder_and_predictor_begin_as_published() -> None:
    torch.manual_seed(0)
    for layer in Decoder(128, 128, 12, 2, (4, 4)).modules():
        if isinstance(layer, torch.nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5  # Glorot and Bengio's
            assert 0.98 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
    predictor = Predictor(128, 128, 3, (4, 4)).requires_grad_(False)
    for n, block in enumerate(predictor.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert math.isclose(weight.std(), 0.02 / (2 * n) ** 0.5, rel_tol=0.06)
        assert math.isclose(block.mlp.fc1.weight.std(), 0.02, rel_tol=0.06)


@pytest.mark.parametrize("name", [*NAMES, "videomae"])
def test_the_papers_settings_build(name: str) -> None:
    """What `reference` says is what model, method and recipe take."""
    published = dict(methods.get(name).reference.hyperparameters)
    taken = inspect.signature(methods.get(name)).parameters
    chosen = {key: value for key, value in published.items() if key in taken}
    with torch.device("meta"):
        arguments = {**published.get("model_args", {}), "depth": 1}
        encoder = models.create(published["model"], **arguments)
        heads = {key: value for key, value in chosen.items() if key.endswith(("heads", "dim"))}
        width = chosen.get("decoder_dim", 384)
        if heads:
            number = heads[next(key for key in heads if key.endswith("heads"))]
            widths = {"mae": 32, "videomae": 64, "ijepa": 24}
            assert width // number == widths[name]
            Decoder(encoder.num_features, width, 3, 1, encoder.grid_size, heads=number)
    assert {"lr", "weight_decay", "batch_size", "epochs"} <= set(published)
    recipe(methods.get(name).own_recipe(), **published.get("recipe_args", {}))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_hidden_depends_on_seed_step_and_sample_alone(name: str) -> None:
    method = small(name)

    def masks(ids: list[int], step: int = 3, seed: int = 1) -> Tensor:
        return method.mask(batch_of(ids), Context(step, 0, 10, seed=seed))[0]

    whole = masks([4, 8, 15, 16])
    assert torch.equal(whole, torch.cat([masks([4, 8]), masks([15, 16])]))  # two ranks
    assert torch.equal(whole.flip(0), masks([16, 15, 8, 4]))
    for other in (masks([4, 8, 15, 16], step=4), masks([4, 8, 15, 16], seed=2)):
        assert whole.shape != other.shape or not torch.equal(whole, other)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_positions_take_no_weight_decay(name: str) -> None:
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = models.vit(**shape, reg_tokens=1, global_pool="avg")
    method = methods.create(name, encoder, **needed(name))
    decayed, free = (set(map(id, group["params"])) for group in method.param_groups())
    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    assert decayed | free == {id(p) for p in trained.values()}
    for parameter_name, parameter in trained.items():
        token = parameter_name.endswith(("token", "pos_embed"))
        assert (id(parameter) in free) == (token or parameter.ndim == 1), parameter_name
    assert not any(parameter_name.startswith("teacher") for parameter_name in trained)


# Dynamo looks at .grad of whatever crosses a graph break, and I-JEPA's masks are one.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", NAMES)
def test_methods_compile_whole_and_train_in_bf16(name: str) -> None:
    shallow = {"mae": {"decoder_depth": 1}, "ijepa": {"predictor_depth": 1}}
    method = small(name, torch.float32, depth=1, **shallow.get(name, {}))
    batch, weight = batch_of([3, 9, 11], torch.float32), method.encoder.blocks[0].attn.qkv.weight
    torch.compiler.reset()  # what other tests have compiled counts as a first step
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(method, backend=graphs, fullgraph=name != "ijepa")
    for step in (0, 2, 3, 7):  # I-JEPA's shapes differ
        expected = method(batch, Context(step, 0, 10))["loss"]
        # As the trainer has it: another step is other data.
        there = torch.tensor(step)
        found = compiled(batch, Context(step, step // 2, 10, device_step=there))["loss"]
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(loss, weight)[0] for loss in (expected, found)]
        torch.testing.assert_close(*gradients)
    # One graph for all steps. I-JEPA's mask breaks encode in two, and the shapes that it draws on
    # the host make one of the first step's and one of any.
    assert graphs.frame_count == (4 if name == "ijepa" else 1)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(batch, Context(7, 0, 10))["loss"]
    assert rounded.dtype == torch.float32
    assert math.isclose(rounded.item(), expected.item(), rel_tol=0.03)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in method.encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_what_is_hidden(name: str) -> None:
    method, batch, ctx = small(name).eval(), batch_of([3, 9]), Context(7, 0, 10, seed=2)
    with torch.no_grad():
        pictures = method.pictures(batch, ctx)
    images = batch.views[0]
    assert torch.equal(pictures["original"], images)
    assert all(picture.shape == images.shape for picture in pictures.values())
    if name == "ijepa":
        blocks = method.mask(batch, ctx)
        shown = {"context": blocks.context, "targets": blocks.targets.flatten(1)}
        for row, ids in shown.items():
            visible = patches_by_hand(pictures[row]).abs().sum(-1) > 0
            assert [set(v.nonzero()[:, 0].tolist()) for v in visible] == [
                set(i) for i in ids.tolist()
            ]
        return
    drawn = method.mask(batch, ctx)
    mask = drawn.mask if isinstance(drawn, PatchMask) else drawn[0]
    masked, made = (patches_by_hand(pictures[row]) for row in ("masked", "reconstructed"))
    true = patches_by_hand(images)
    assert not masked[mask].any()
    assert torch.equal(masked[~mask], true[~mask])
    assert torch.equal(made[~mask], true[~mask])
    assert not torch.isclose(made[mask], true[mask]).all(-1).any()


def test_a_perfect_decoder_reconstructs_the_image() -> None:
    """With norm_pix, predictions are put back into the patches' own mean and spread."""
    method, batch = small("mae"), batch_of([3, 9])
    target = patches_by_hand(batch.views[0])
    spread = (target.var(-1, keepdim=True) + 1e-6).sqrt()
    perfect = (target - target.mean(-1, keepdim=True)) / spread
    method.decoder.forward = lambda tokens, ids_restore: perfect
    with torch.no_grad():
        pictures = method.pictures(batch, Context(0, 0, 1))
    torch.testing.assert_close(pictures["reconstructed"], batch.views[0])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_encoders_and_views_are_explained(name: str) -> None:
    with pytest.raises(ValueError, match="needs a VisionTransformer as its encoder, got ConvNet"):
        methods.create(name, models.create("convnet_small"))
    batch = batch_of([1, 2])
    pair = Batch((*batch.views, *batch.views), batch.sample_ids)
    with pytest.raises(ValueError, match="one view, got 2: choose a recipe of one view"):
        small(name)(pair, Context(0, 0, 1))


def test_wrong_settings_are_explained() -> None:
    token = models.create("vit_tiny", img_size=16, patch_size=8, depth=1)
    with pytest.raises(ValueError, match='build the model with global_pool="avg"'):
        methods.create("ijepa", token)
    with pytest.raises(ValueError, match=r"mask_patches=3 does not divide the grid of 8 x 8"):
        small("simmim", mask_patches=3)
    for ratio in (0.0, 1.0):
        with pytest.raises(
            ValueError, match=rf"mask_ratio={ratio} hides \d+ of 64 patches: choose"
        ):
            small("beit", mask_ratio=ratio)
    with pytest.raises(
        ValueError, match=r"beit needs a tokenizer: make one with sslfast tokenizer"
    ):
        small("beit", tokenizer=None)
    with pytest.raises(ValueError, match=r"patches of \(8, 8\) pixels .* cuts \(4, 4\) and 3: fit"):
        small("beit", tokenizer=toy_tokenizer(patch_size=8))
    with pytest.raises(ValueError, match=r"mask_ratio=0.99 leaves no patch of \d+ visible"):
        small("mae", mask_ratio=0.99)
    with pytest.raises(ValueError, match=r"mask_ratio=0.0 leaves every patch of \d+ visible"):
        small("mae", mask_ratio=0.0)
    with pytest.raises(ValueError, match=r"mask_ratio=0.99 hides 16 of 16 patches: choose"):
        small("simmim", mask_ratio=0.99)
    for name in ("mae", "simmim", "beit"):
        with pytest.raises(ValueError, match="mask_ratio must be a finite number, got nan"):
            small(name, mask_ratio=math.nan)
    for name in NAMES:
        with pytest.raises(ValueError, match="build the encoder without num_frames"):
            methods.create(name, models.create("vit_micro", num_frames=4, depth=1), **needed(name))
    with pytest.raises(ValueError, match=r"at least 4 patches, got 1 x 1: .* smaller patch_size"):
        methods.create("ijepa", models.create("vit_micro", img_size=4, depth=1))


def test_the_smallest_grid_of_ijepa_works_in_every_step() -> None:
    shape = {"img_size": (4, 16), "embed_dim": 32, "depth": 1, "num_heads": 2}
    method = methods.create("ijepa", models.create("vit_micro", **shape), predictor_depth=1)
    images, ids = torch.randn(3, 3, 4, 16), torch.arange(3)
    for step in range(20):
        assert method(Batch((images,), ids), Context(step, 0, 20))["loss"].isfinite()


def test_the_teacher_begins_as_an_encoder_that_was_loaded() -> None:
    method, other = small("ijepa"), small("ijepa").encoder
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight.add_(1.0)
    method.encoder.load_state_dict(other.state_dict())
    method.after_load()
    for name, tensor in other.state_dict().items():
        assert torch.equal(method.teacher.module.state_dict()[name], tensor), name
