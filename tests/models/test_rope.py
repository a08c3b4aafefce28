"""Rotary positions: DINOv3's formula, timm's numbers, and what they promise."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import peers
from sslfast import models
from sslfast.masking import random_mask
from sslfast.models.rope import RotaryPositions, rotate
from sslfast.models.transformer import Block

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def small(**changes: Any) -> models.VisionTransformer:
    """None of whose weights is 0 or 1."""
    torch.manual_seed(0)
    model = models.vit(**{**SMALL, "pos_embed": "rope", "dynamic_img_size": True, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def test_angles_and_turns_are_the_published_formula() -> None:
    dim, (rows, columns) = 12, (3, 5)
    cos, sin = RotaryPositions(dim, temperature=50.0).double().eval()((rows, columns), prefix=2)
    assert cos.shape == sin.shape == (2 + 15, dim // 2)
    x = torch.randn(1, 1, 17, dim).double()
    turned = rotate(x, (cos, sin))[0, 0]
    assert torch.equal(turned[:2], x[0, 0, :2])
    for row, column in ((0, 0), (2, 1), (1, 4)):
        n = 2 + row * columns + column
        places = (2 * (row + 0.5) / rows - 1, 2 * (column + 0.5) / columns - 1)
        angles = [
            2 * math.pi * place / 50 ** (4 * i / dim) for place in places for i in range(dim // 4)
        ]
        for i, angle in enumerate(angles):
            a, b = float(x[0, 0, n, i]), float(x[0, 0, n, i + dim // 2])
            expected = torch.tensor(
                [
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle),
                ]
            )
            found = turned[n, [i, i + dim // 2]]
            torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)


def test_attention_depends_on_the_distance_alone(generator: torch.Generator) -> None:
    """Logits of one query and one key at all pairs of places of a grid."""
    rows, columns = 3, 4
    q, k = (torch.randn(8, generator=generator).double().expand(1, 1, 12, 8) for _ in "qk")
    rotation = RotaryPositions(8).double().eval()((rows, columns))
    logits = (rotate(q, rotation) @ rotate(k, rotation).mT).view(rows, columns, rows, columns)
    far = {}
    for r in range(rows):
        for c in range(columns):
            for r2 in range(rows):
                for c2 in range(columns):
                    logit = float(logits[r, c, r2, c2])
                    assert far.setdefault((r2 - r, c2 - c), logit) == pytest.approx(logit)
    values = sorted(far.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-6  # all others differ


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of DINOv3's weights, whose keys have no bias, in those of its other ViTs."""
    found = {}
    for key, value in state.items():
        for number in "12":
            key = key.replace(f"gamma_{number}", f"ls{number}.gamma")
        if key.endswith("q_bias"):
            start = key.removesuffix("q_bias")
            parts = value, torch.zeros_like(value), state[f"{start}v_bias"]
            found[f"{start}qkv.bias"] = torch.cat(parts)
        elif not key.endswith("v_bias"):
            found[key] = value
    return found


def test_the_whole_network_is_timms_dinov3() -> None:
    theirs = peers.timm_model("eva").Eva(
        **SMALL, num_classes=0, global_pool="token", init_values=0.1, rope_type="dinov3",
        rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False,
        num_reg_tokens=4, use_fc_norm=False, dynamic_img_size=True,
    ).eval()  # fmt: skip
    ours = small(init_values=0.1, reg_tokens=4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    periods = {"rope_embed.periods": ours.rope_embed.periods}
    ours.load_state_dict(renamed(theirs.state_dict()) | periods)
    without = small(init_values=0.1, reg_tokens=4, pos_embed="none")
    without.load_state_dict(renamed(theirs.state_dict()))
    for size in ((32, 32), (48, 40)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = theirs.forward_features(images)
            torch.testing.assert_close(ours.forward_features(images), expected)
            assert (without.forward_features(images) - expected).abs().max() > 0.01


def test_visible_patches_keep_their_places() -> None:
    model = small(reg_tokens=1).double()
    images = torch.randn(2, 3, 32, 32).double()
    ids = random_mask(2, 16, 0.5, seed=1).ids_keep
    tokens = model.embed(images, ids)
    kept = model.forward_features(images, ids)
    torch.testing.assert_close(model.transform(tokens, (4, 4), ids), kept)
    elsewhere = model.transform(tokens, (4, 4), ids.flip(0))
    assert (elsewhere - kept).abs().max() > 1e-4
    with pytest.raises(ValueError, match="which 8 of 16 patches these are: give ids_keep"):
        model.transform(tokens)
    last, layers = model.forward_intermediates(images, norm=True, output_fmt="NLC")
    torch.testing.assert_close(last, model.forward_features(images))
    torch.testing.assert_close(layers[-1], last[:, 2:])


def test_places_move_while_training_only(generator: torch.Generator) -> None:
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    limits = {"shift_coords": 0.3, "jitter_coords": 1.5, "rescale_coords": 2.0}
    places = torch.tensor([[-0.5, 0.25], [0.5, -1.0]]).double()
    for name, limit in limits.items():
        rope = RotaryPositions(8, **{name: limit}).double()
        draws = torch.stack([rope.moved(places) for _ in range(200)])
        change = draws - places if name == "shift_coords" else (draws / places).log()
        most = limit if name == "shift_coords" else math.log(limit)
        torch.testing.assert_close(change[:, 0], change[:, 1])  # all patches alike
        assert 0.9 * most < change.max() <= most
        assert -most <= change.min() < -0.9 * most
        alike = torch.isclose(change[..., 0], change[..., 1]).all()  # both axes
        assert alike == (name == "rescale_coords")
    rope = RotaryPositions(8, **limits)
    moved, again = rope((2, 2))[0], rope((2, 2))[0]
    assert not torch.equal(moved, again)
    exact = RotaryPositions(8)((2, 2))[0]
    assert torch.equal(rope.eval()((2, 2))[0], exact)


def test_checkpointed_and_compiled_networks() -> None:
    model = small(rope_rescale_coords=2.0, grad_checkpointing=True).train()
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    model(images).sum().backward()
    saved = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_grad_checkpointing(False)
    torch.manual_seed(1)
    model(images).sum().backward()
    for name, gradient in saved.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)
    model.eval()
    run = torch.compile(model.forward_features, backend="aot_eager", fullgraph=True)
    ids = random_mask(2, 16, 0.5, seed=1).ids_keep
    with torch.no_grad():
        torch.testing.assert_close(run(images, ids), model.forward_features(images, ids))
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_dtypes_and_autocast(dtype: torch.dtype) -> None:
    model = small(reg_tokens=2).double()
    images = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        exact = model.forward_features(images)
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype):
                rounded = model.float().forward_features(images.float())
            assert (rounded - exact).norm() < 20 * torch.finfo(dtype).eps * exact.norm()
        found = model.to(dtype).forward_features(images.to(dtype))
    assert found.dtype == dtype
    assert (found - exact).norm() < 20 * torch.finfo(dtype).eps * exact.norm()


def test_what_cannot_turn_is_refused() -> None:
    class Other(Block):
        pass

    for wrong in ({"num_frames": 4}, {"block_fn": Other}):
        with pytest.raises(ValueError, match='pos_embed="rope" is for images, and for blocks'):
            small(**wrong)
    with pytest.raises(ValueError, match="a width divisible by 4, got 6"):
        small(embed_dim=24)
    with pytest.raises(ValueError, match='are for pos_embed="rope"'):
        small(pos_embed="learn", rope_shift_coords=0.1)
    with pytest.raises(ValueError, match="rope_rescale_coords must be"):
        small(rope_rescale_coords=0.5)
