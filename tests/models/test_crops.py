"""Crops pass the encoder together, and every view gets its own outputs back."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslfast import models
from sslfast.masking import random_mask
from sslfast.models.crops import encode_crops
from sslfast.models.layers import DropPath
from sslfast.models.packing import Packing, pack
from sslfast.models.transformer import Block


def crops(*sizes: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, size, size, generator=generator) for size in sizes]


def test_every_view_gets_what_it_would_get_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    views = crops(16, 8, 16, 8, 8)
    found = encode_crops(module, views)
    assert len(found) == len(views)
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output, module(view))


def test_one_forward_pass_for_each_size_whatever_the_order() -> None:
    seen: list[tuple[int, ...]] = []

    def module(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.mean((1, 2, 3))

    views = crops(8, 16, 8, 16, 8)
    found = encode_crops(module, views)
    assert seen == [(9, 3, 8, 8), (6, 3, 16, 16)]
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output, view.mean((1, 2, 3)))


def test_nests_of_outputs_and_batches_of_their_own_length() -> None:
    views = [crops(8, count=2)[0], crops(8, count=5)[0]]
    found = encode_crops(lambda x: {"pixels": x.flatten(1), "mean": x.mean((1, 2, 3))}, views)
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output["pixels"], view.flatten(1))
        torch.testing.assert_close(output["mean"], view.mean((1, 2, 3)))


def test_batch_norm_sees_the_views_of_a_size_as_one_batch() -> None:
    views = crops(8, 8)
    first, second = encode_crops(nn.BatchNorm2d(3, affine=False), views)
    torch.testing.assert_close(
        torch.cat((first, second)), nn.BatchNorm2d(3, affine=False)(torch.cat(views))
    )


def vit(**changes: Any) -> models.VisionTransformer:
    """A small one, none of whose weights is 0 or 1, in float64."""
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = models.vit(**{**small, "dynamic_img_size": True, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.double()


def views_of_two_sizes() -> list[Tensor]:
    """Sizes in turn, and batches of their own length."""
    return [v[: 3 - n % 2].double() for n, v in enumerate(crops(16, 8, 16, 8, 8))]


def gradients(model: nn.Module, outputs: list[Tensor]) -> dict[str, Tensor]:
    """Of a sum in which every number has another weight."""
    torch.manual_seed(1)
    model.zero_grad()
    torch.stack([(x * torch.randn(x.shape).to(x)).sum() for x in outputs]).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


PACKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers, layer scale, norms of q and k": {
        **{"reg_tokens": 2, "init_values": 0.1, "qk_norm": True, "num_classes": 3},
    },
    "SwiGLU, mean of the patches": {
        **{"mlp_layer": "swiglu", "class_token": False, "global_pool": "avg"},
    },
    "packed SwiGLU, all norms": {
        **{"mlp_layer": "swiglu_packed", "scale_attn_norm": True, "scale_mlp_norm": True},
        **{"pre_norm": True, "norm_layer": "rmsnorm", "embed_norm_layer": "layernorm"},
    },
    "attention pooling, no positions": {"global_pool": "map", "pos_embed": "none"},
    "rotary positions and all of it": {
        **{"pos_embed": "rope", "reg_tokens": 2, "qk_norm": True, "init_values": 0.1},
        **{"mlp_layer": "swiglu", "norm_layer": "rmsnorm", "grad_checkpointing": True},
    },
    "memory saved": {"grad_checkpointing": True, "init_values": 0.1},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PACKED)
def test_packed_crops_are_separate_passes(name: str, dtype: torch.dtype) -> None:
    model = vit(**PACKED[name]).to(dtype)
    views = [v.to(dtype) for v in views_of_two_sizes()]
    for packed, alone in (
        (model.forward_crops, model),
        (model.forward_features_crops, model.forward_features),
    ):
        found, expected = packed(views), [alone(v) for v in views]
        assert len(found) == len(views)
        torch.testing.assert_close(found, expected)
        pair = gradients(model, found), gradients(model, expected)
        assert pair[0].keys() == pair[1].keys()
        largest = max(float(gradient.abs().max()) for gradient in pair[1].values())
        for key, gradient in pair[1].items():
            # Positions are interpolated in float32. Some gradients are 0 but for rounding.
            eps = torch.finfo(torch.float32 if key == "pos_embed" else dtype).eps
            tolerance = 10 * eps * largest
            torch.testing.assert_close(pair[0][key], gradient, rtol=0, atol=tolerance)


def test_all_sizes_share_one_pass_of_the_blocks_also_behind_a_head() -> None:
    model, rows = vit(), list[tuple[int, ...]]()
    model.blocks[0].mlp.fc1.register_forward_hook(lambda _m, x, _y: rows.append(x[0].shape))
    views = views_of_two_sizes()
    tokens = sum(len(v) * (1 + v[0, 0].numel() // 16) for v in views)
    head = nn.Linear(16, 5).double()
    found = encode_crops(nn.Sequential(model, nn.Sequential(head)), views)
    assert rows == [(tokens, 16)]
    torch.testing.assert_close(found, [head(model(v)) for v in views])


def test_blocks_of_another_class_make_one_pass_for_each_size() -> None:
    class Doubled(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * super().forward(x)

    model, rows = vit(block_fn=Doubled), list[tuple[int, ...]]()
    model.blocks[0].register_forward_hook(lambda _m, x, _y: rows.append(x[0].shape))
    views = views_of_two_sizes()
    found = model.forward_crops(views)
    assert rows == [(6, 17, 16), (7, 5, 16)]
    torch.testing.assert_close(found, [model(v) for v in views])


def test_packed_crops_compile_in_one_graph_and_autocast() -> None:
    model, views = vit().float().eval(), crops(16, 8, 8)
    student = nn.Sequential(model, nn.Linear(16, 3))
    run = torch.compile(partial(encode_crops, student), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(run(views), [student(v) for v in views])
        expected = [model(v) for v in views]
        torch.compiler.reset()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.forward_crops(views)
    for found, exact in zip(rounded, expected, strict=True):
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_packed_crops_of_visible_patches() -> None:
    model = vit(pos_embed="rope")
    big, little = (v.double() for v in crops(16, 8))
    ids = random_mask(3, 16, 0.5, seed=1).ids_keep
    tokens, grids = [model.embed(big, ids), model.embed(little)], [(4, 4), (2, 2)]
    found = model.transform_crops(tokens, grids, [ids, None])
    expected = [model.forward_features(big, ids), model.forward_features(little)]
    torch.testing.assert_close(found, expected)


def test_an_empty_batch_beside_others() -> None:
    model = vit()
    whole, part = (v.double() for v in crops(16, 8))
    found = model.forward_crops([whole, part[:0]])
    assert found[1].shape == (0, 16)
    torch.testing.assert_close(found[0], model(whole))
    assert model.forward_crops([]) == []


def test_packed_samples_drop_paths_by_themselves(generator: torch.Generator) -> None:
    tokens = [torch.ones(3000, 4, 2), torch.ones(2000, 2, 2)]
    packing = Packing.of(tokens)
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    found = packing.unpack(DropPath(0.25)(pack(tokens), packing))
    for part, whole in zip(found, tokens, strict=True):
        assert part.shape == whole.shape
        assert set(part.flatten().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
        assert torch.equal(part, part[:, :1, :1].expand_as(part))
        assert abs(float(part.mean()) - 1) < 0.08  # six standard deviations
    assert DropPath(0.25).eval()(tokens[0], packing) is tokens[0]
    tokens = [torch.randn(300, 3, 8), torch.randn(500, 2, 8)]
    packing = Packing.of(tokens)
    found = packing.unpack(Block(8, 2, drop_path=0.5)(pack(tokens), packing))
    for part, whole in zip(found, tokens, strict=True):
        same = (part == whole).all(2)  # both branches were left out
        assert torch.equal(same, same[:, :1].expand_as(same))
        assert abs(float(same.float().mean()) - 0.25) < 0.15
