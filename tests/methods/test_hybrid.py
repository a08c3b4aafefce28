"""Hybrid: MAE on two masks of an image, and NT-Xent between them."""

import math
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.masking import random_mask
from sslfast.methods.base import Context, Method

SHAPE = {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
CTX = Context(3, 0, 10, seed=2)


def small(name: str = "hybrid", **keywords: Any) -> Method:
    torch.manual_seed(0)
    encoder = models.create("vit_micro", **SHAPE)
    return methods.create(name, encoder, **{"decoder_depth": 1, **keywords}).double()


def batch_of(ids: list[int]) -> Batch:
    images = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(5)).double()
    return Batch((images[ids],), torch.tensor(ids))


def test_the_loss_is_maes_of_both_masks_and_a_contrast_of_them() -> None:
    method, batch = small(contrast_weight=0.4, temperature=0.3), batch_of([3, 9, 11])
    found = method(batch, CTX)
    encoder, images = method.encoder, batch.views[0]
    maes, embedded = [], []
    for stream in (0, 1):
        drawn = {"seed": 2, "step": 3, "sample_ids": batch.sample_ids, "stream": stream}
        keep, restore, mask = random_mask(3, 16, 0.75, **drawn)
        tokens = encoder.forward_features(images, keep)
        assert tokens.shape == (3, 4, 16)  # no class token
        target = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        target = (target - target.mean(-1, True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = (method.decoder(tokens, restore) - target).square().mean(-1)
        maes.append(errors[mask].mean())
        embedded.append(method.projector(tokens.mean(1)))
    z = torch.nn.functional.normalize(torch.cat(embedded), dim=1)
    logits = (z @ z.T / 0.3).masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
    contrast = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4, 5, 0, 1, 2]))
    mae = sum(maes) / 2
    torch.testing.assert_close(found["reconstruction"], mae.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["contrast"], contrast.detach())
    torch.testing.assert_close(found["loss"], mae + 0.4 * contrast, rtol=1e-5, atol=1e-6)
    cosine = torch.cosine_similarity(*embedded).mean().detach()
    torch.testing.assert_close(found["positive_similarity"].double(), cosine, rtol=1e-5, atol=1e-6)


def test_without_contrast_it_is_mae() -> None:
    method, mae, batch = small(contrast_weight=0), small("mae"), batch_of([3, 9, 11])
    mae.load_state_dict(method.state_dict())  # there is no projector
    found = method(batch, CTX)
    assert set(found) == {"loss"}
    assert found["loss"] == mae(batch, CTX)["loss"]


def test_both_masks_are_those_of_a_sample_and_a_step() -> None:
    method = small()
    for draw in (method.mask, method.second_mask):
        whole = draw(batch_of([4, 8, 15]), CTX).mask
        parts = [draw(batch_of(ids), CTX).mask for ids in ([4], [8, 15])]
        assert torch.equal(whole, torch.cat(parts))
        assert not torch.equal(whole, draw(batch_of([4, 8, 15]), Context(4, 0, 10, seed=2)).mask)
    both = [draw(batch_of([4, 8, 15]), CTX).mask for draw in (method.mask, method.second_mask)]
    assert not torch.equal(*both)


def test_both_parts_move_the_encoder() -> None:
    batch = batch_of([3, 9, 11])
    gradients = []
    for weight in (0.5, 1.0):
        method = small(contrast_weight=weight)
        method(batch, CTX)["loss"].backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
        gradients.append(method.encoder.blocks[0].attn.qkv.weight.grad)
    assert (gradients[1] - gradients[0]).abs().max() > 1e-4


def test_encoded_in_chunks_it_is_the_same_loss() -> None:
    """As the trainer does with contrastive_batch."""
    method, batch = small(), batch_of([3, 9, 11, 5])
    weight = method.encoder.blocks[0].attn.qkv.weight
    found = []
    for size in (None, 2):
        loss = method(batch, CTX, size)["loss"]
        found.append((loss.detach(), torch.autograd.grad(loss, weight)[0]))
    torch.testing.assert_close(found[1], found[0])


def over_ranks(rank: int, size: int) -> None:
    parts = [[3, 9, 11], [5, 7, 2]]
    here = Context(3, 0, 10, seed=2, rank=rank, world_size=size)
    found = []
    for ids, ctx in ((parts[0] + parts[1], CTX), (parts[rank], here)):
        method = small(contrast_weight=1.0)
        if ctx is CTX:
            method.criterion.gather_distributed = False
        loss = method(batch_of(ids), ctx)["loss"]
        weight = method.encoder.blocks[0].attn.qkv.weight
        found.append([loss.detach(), torch.autograd.grad(loss, weight)[0]])
    for local in found[1]:
        dist.all_reduce(local)
        local /= size
    torch.testing.assert_close(found[1], found[0])


def test_two_ranks_are_one_process() -> None:
    processes.run(2, over_ranks)


def test_wrong_settings_are_explained() -> None:
    for keyword, value in (("temperature", 0.0), ("contrast_weight", -1.0), ("out_dim", 0)):
        with pytest.raises(ValueError, match=f"{keyword} must be "):
            small(**{keyword: value})
    for ratio, what in ((1.0, "no"), (0.0, "every")):
        with pytest.raises(ValueError, match=f"leaves {what} patch of 16 visible"):
            small(mask_ratio=ratio)
    with pytest.raises(ValueError, match="needs a VisionTransformer as its encoder, got ConvNet"):
        methods.create("hybrid", models.create("convnet_small"))
