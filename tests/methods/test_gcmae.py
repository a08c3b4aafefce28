"""GCMAE: MAE beside a softmax over a bank with a row for every image."""

import math
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context, Method

SHAPE = {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_pool": "token"}
CTX = Context(3, 0, 10, seed=2)


def small(name: str = "gcmae", **keywords: Any) -> Method:
    torch.manual_seed(0)
    encoder = models.create("vit_micro", **SHAPE, class_token=True)
    sizes = {"decoder_depth": 1, "mask_ratio": 0.5, **({"bank_size": 20} if name != "mae" else {})}
    return methods.create(name, encoder, **{**sizes, **keywords}).double()


def batch_of(ids: list[int]) -> Batch:
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(5)).double()
    return Batch((images[ids],), torch.tensor(ids))


def features_by_hand(method: Method, batch: Batch, ctx: Context) -> Tensor:
    """Unit means of all visible tokens, the class token's among them."""
    keep = method.mask(batch, ctx).ids_keep
    encoder, images = method.encoder, batch.views[0]
    at = keep[..., None].expand(-1, -1, 16)
    patches = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
    tokens = encoder.norm(encoder.blocks(torch.cat([first, patches.gather(1, at)], 1)))
    mean = tokens.mean(1)
    return mean / mean.norm(dim=1, keepdim=True)


def test_the_loss_is_maes_and_a_softmax_over_all_rows() -> None:
    method, batch = small(), batch_of([3, 9, 11, 25])
    method.owners[[3, 9, 5]] = torch.tensor([3, 29, 25])  # of 9 there is another's row
    bank = method.bank.clone()
    found = method(batch, CTX)
    mae = small("mae")
    mae.load_state_dict(method.state_dict(), strict=False)
    features = features_by_hand(method, batch, CTX)
    logits = features @ bank.T / 0.07
    losses = [logits[n].logsumexp(0) - logits[n, row] for n, row in ((0, 3), (3, 5))]
    reconstruction = mae(batch, CTX)["loss"]
    torch.testing.assert_close(found["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(found["contrast"], (sum(losses) / 4).detach().double())
    torch.testing.assert_close(found["loss"], reconstruction + 0.1 * sum(losses) / 4)
    assert found["known"] == 0.5


def test_the_bank_keeps_a_moving_average_of_each_image() -> None:
    method, batch = small(bank_momentum=0.3), batch_of([3, 9, 31])
    method.owners[3] = 3
    before = method.bank.clone()
    features = features_by_hand(method, batch, CTX).detach()
    method(batch, CTX)
    moved = 0.3 * before[3] + 0.7 * features[0]
    torch.testing.assert_close(method.bank[3], moved / moved.norm())
    torch.testing.assert_close(method.bank[[9, 11]], features[1:])  # seen for the first time
    assert method.owners[[3, 9, 11]].tolist() == [3, 9, 31]
    untouched = [n for n in range(20) if n not in (3, 9, 11)]
    assert torch.equal(method.bank[untouched], before[untouched])
    assert (method.owners[untouched] == -1).all()


def test_of_images_that_share_a_row_the_last_has_it() -> None:
    method, batch = small(), batch_of([3, 23, 9])
    features = features_by_hand(method, batch, CTX)
    method(batch, CTX)
    torch.testing.assert_close(method.bank[3], features[1].detach())
    assert method.owners[3] == 23
    assert method(batch, CTX)["known"] == pytest.approx(2 / 3)


def test_the_contrast_moves_the_encoder_and_never_the_bank() -> None:
    method, batch = small(), batch_of([3, 9])
    method(batch, CTX)
    method.contrast_weight = 0.0
    weight = method.encoder.blocks[0].attn.qkv.weight
    alone = torch.autograd.grad(method(batch, CTX)["loss"], weight)[0]
    method.contrast_weight = 1.0
    both = torch.autograd.grad(method(batch, CTX)["loss"], weight)[0]
    assert (both - alone).abs().max() > 1e-4
    assert not method.bank.requires_grad
    with torch.no_grad():  # a look at the loss is no step
        bank = method.bank.clone()
        method(batch_of([4, 5]), CTX)
    assert torch.equal(method.bank, bank)


def test_in_the_first_epoch_there_is_mae_alone() -> None:
    found = small()(batch_of([3, 9]), CTX)
    assert found["contrast"] == 0
    assert found["known"] == 0
    assert found["loss"].detach() == found["reconstruction"]


def over_ranks(rank: int, size: int) -> None:
    parts = [[3, 9, 11], [25, 7, 30]]
    whole, own = small(), small()
    for epoch in range(2):  # with rows, and without
        ctx = Context(epoch, epoch, 10, seed=2)
        expected = whole(batch_of([n for part in parts for n in part]), ctx)
        here = Context(epoch, epoch, 10, 2, rank=rank, world_size=size, process_group=None)
        found = own(batch_of(parts[rank]), here)
        losses, weights = [], []
        for method, value in ((whole, expected["loss"]), (own, found["loss"])):
            weight = method.encoder.blocks[0].attn.qkv.weight
            losses.append(value.detach().clone())
            weights.append(torch.autograd.grad(value, weight)[0])
        for local in (losses[1], weights[1]):
            dist.all_reduce(local)
            local /= size
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*weights)
        torch.testing.assert_close(own.bank, whole.bank)
        assert torch.equal(own.owners, whole.owners)


def test_two_ranks_are_one_process_and_hold_the_same_bank() -> None:
    processes.run(2, over_ranks)


def test_compiled_the_bank_moves_alike() -> None:
    torch.compiler.reset()
    eager, compiled = small().float(), small().float()
    call = torch.compile(compiled, backend="aot_eager")
    batch = batch_of([3, 9])
    batch = Batch((batch.views[0].float(),), batch.sample_ids)
    for step in range(2):
        ctx = Context(step, 0, 10, seed=2, device_step=torch.tensor(step))
        torch.testing.assert_close(call(batch, ctx), eager(batch, ctx))
    torch.testing.assert_close(compiled.bank, eager.bank)
    assert torch.equal(compiled.owners, eager.owners)
    torch.compiler.reset()


def test_pictures_are_maes() -> None:
    method, batch = small(), batch_of([3, 9])
    assert torch.equal(method.pictures(batch, CTX)["original"], batch.views[0])
    assert (method.owners == -1).all()


def test_wrong_settings_are_explained() -> None:
    for keyword, value in (
        *(("temperature", 0.0), ("bank_size", 0), ("bank_momentum", 1.5)),
        *(("contrast_weight", -0.1), ("temperature", math.nan)),
    ):
        with pytest.raises(ValueError, match=f"{keyword} must be "):
            small(**{keyword: value})
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 leaves no patch of 16 visible"):
        small(mask_ratio=1.0)
    with pytest.raises(ValueError, match="needs a VisionTransformer as its encoder, got ConvNet"):
        methods.create("gcmae", models.create("convnet_small"))


def test_a_bank_smaller_than_the_data_is_said() -> None:
    vit = {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    method = methods.create("gcmae", models.create("vit_micro", **vit), bank_size=16)
    assert method.remarks(16) == []
    assert "16 rows is smaller than the 17 samples" in method.remarks(17)[0]
