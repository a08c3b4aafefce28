"""iBOT: what is hidden from whom, its formula, one head or two, what is trained."""

from typing import Any

import torch
from tokens import needed
from torch import Tensor, nn

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.functional import koleo
from sslfast.methods.base import Context, Progress
from sslfast.methods.ibot import IBOT

CTX = Context(3, 0, 10, seed=5)
PATCHES = 16  # of a global view


def made(name: str = "ibot", **keywords: Any) -> IBOT:
    torch.manual_seed(0)
    small: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2}
    small["num_heads"] = 2
    small |= {"class_token": True, "global_pool": "token", "dynamic_img_size": True}
    encoder = models.create("vit_micro", **small)
    method = methods.create(name, encoder, **{**needed(name), **keywords})
    assert isinstance(method, IBOT)
    for parameter in method.teacher.parameters():  # a copy of the student at first
        parameter.data += 0.1 * torch.randn_like(parameter)
    nn.init.normal_(method.mask_token)
    return method


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    sizes = [16, 16, 8, 8]
    views = tuple(torch.randn(count, 3, s, s, generator=generator) for s in sizes)
    return Batch(views, torch.arange(count) + 40)


def cross_entropy(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    return -((t / temperature).softmax(-1) * (s / 0.1).log_softmax(-1)).sum(-1)


def scores(features: Tensor, head: Any) -> Tensor:
    found = head(features) @ nn.functional.normalize(head.weight, dim=1).T
    assert isinstance(found, Tensor)
    return found


def test_it_is_dinos_loss_and_that_of_hidden_patches() -> None:
    for own in (False, True):
        method = made(patch_head=own, patch_out_dim=24, patch_weight=0.7)
        views, net, teacher = batch().views, method.student, method.teacher.module
        found = method.loss(method.encode(batch(), CTX), CTX)
        mask = method.masks(batch(), CTX).mask
        images = torch.cat(views[:2])
        seen, blind = teacher.encoder.forward_features(images), net.encoder.embed(images)
        hidden = method.mask_token + net.encoder.positions(net.encoder.grid_size)[1]
        blind = net.encoder.transform(torch.where(mask[..., None], hidden, blind))
        t = scores(seen[:, 0], teacher.head).chunk(2)
        s = [*scores(blind[:, 0], net.head).chunk(2)]
        s += scores(net.encoder(torch.cat(views[2:])), net.head).chunk(2)
        pairs = [cross_entropy(t[k], x, 0.07) for k in (0, 1) for v, x in enumerate(s) if v != k]
        heads = (teacher.patch_head, net.patch_head) if own else (teacher.head, net.head)
        patches = (scores(x[:, 1:], head) for x, head in zip((seen, blind), heads, strict=True))
        each = cross_entropy(*patches, 0.07) * mask  # type: ignore[call-arg]
        per_image = (each.sum(1) / mask.sum(1).clamp_min(1)).mean()
        torch.testing.assert_close(found["class_loss"], torch.stack(pairs).mean())
        torch.testing.assert_close(found["patch_loss"], per_image)
        torch.testing.assert_close(found["loss"], torch.stack(pairs).mean() + 0.7 * per_image)


def test_masks_are_of_half_of_the_views_and_change() -> None:
    method = made(mask_ratios=(0.25, 0.5))
    masks = method.masks(batch(8), CTX)
    hidden = masks.mask.sum(1)
    assert masks.mask.shape == (16, PATCHES)
    assert (hidden > 0).view(2, 8).sum(1).tolist() == [4, 4]
    assert hidden[hidden > 0].min() >= 4
    assert hidden.max() <= 8
    later = method.masks(batch(8), Context(4, 0, 10, seed=5))
    assert not torch.equal(later.mask, masks.mask)
    assert torch.equal(masks.mask.flatten().nonzero().squeeze(1), masks.ids)


def test_the_mask_token_learns_and_the_patches_temperature_rises() -> None:
    method = made(warmup_temperature_epochs=3)
    method.loss(method.encode(batch(), CTX), CTX)["loss"].backward()
    assert method.mask_token.grad is not None
    assert method.mask_token.grad.any()
    *groups, prototypes = method.param_groups()
    assert any(p is method.mask_token for p in groups[1]["params"])
    assert prototypes["params"] == [method.head.weight]
    temperatures = [method.schedules(Progress(s, 40, 10))["patch_temperature"] for s in (0, 10, 39)]
    torch.testing.assert_close(temperatures, [0.04, 0.055, 0.07])


def test_prototypes_of_a_head_of_its_own_are_frozen_too() -> None:
    method = made(patch_head=True, patch_out_dim=24)
    last = method.param_groups()[-1]
    own = method.student.patch_head
    assert own is not None
    assert [id(p) for p in last["params"]] == [id(method.head.weight), id(own.weight)]
    assert method.teacher.module.patch_head.weight.shape == (24, 16)


def test_dinov2_keeps_features_of_both_views_apart() -> None:
    method, plain = made("dinov2", koleo_weight=0.3), made("dinov2", koleo_weight=0.0)
    outputs = method.encode(batch(), CTX)
    found, without = (m.loss(outputs, CTX) for m in (method, plain))
    apart = koleo(outputs[3][0]) + koleo(outputs[3][1])
    assert outputs[3][0].shape == (6, 32)
    torch.testing.assert_close(found["koleo"], apart)
    torch.testing.assert_close(found["loss"], without["loss"] + 0.3 * apart)
    assert "koleo" not in without
    assert (method.smallest_batch, plain.smallest_batch) == (2, 1)
    parts = without["class_loss"] + without["patch_loss"]
    torch.testing.assert_close(without["loss"].detach(), parts)
