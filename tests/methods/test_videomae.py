"""VideoMAE against the published code's formula written out, and what it promises."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.masking import tube_mask
from sslfast.methods.base import Context
from sslfast.methods.videomae import VideoMAE
from sslfast.models.patches import patchify, unpatchify

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
L, P = 2 * 16, 3 * 2 * 4 * 4  # 4 frames in cubes of 2 x 4 x 4


def small(dtype: torch.dtype = torch.float64, **keywords: Any) -> VideoMAE:
    torch.manual_seed(0)
    encoder = models.create("vit_micro", **SHAPE, num_frames=4)
    method = methods.create("videomae", encoder, **{"decoder_depth": 1, **keywords})
    assert isinstance(method, VideoMAE)
    return method.to(dtype).train()


def batch_of(ids: list[int], dtype: torch.dtype = torch.float64) -> Batch:
    videos = torch.randn(20, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5)).to(dtype)
    return Batch((videos[ids],), torch.tensor(ids))


def cubes_by_hand(videos: Tensor) -> Tensor:
    """[B, L, 3, 32]: cube after cube by slicing, its channels apart."""
    cubes = [
        videos[:, :, t : t + 2, y : y + 4, x : x + 4].flatten(2)
        for t in range(0, videos.shape[2], 2)
        for y in range(0, videos.shape[3], 4)
        for x in range(0, videos.shape[4], 4)
    ]
    return torch.stack(cubes, 1)


def test_cubes_come_back(generator: torch.Generator) -> None:
    videos = torch.randn(2, 3, 6, 8, 20, generator=generator)
    cubes = patchify(videos, (2, 4, 4))
    assert torch.equal(cubes, cubes_by_hand(videos).flatten(2))
    assert torch.equal(unpatchify(cubes, (2, 4, 4), (3, 2, 5)), videos)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_the_error_of_hidden_cubes(norm_pix: bool) -> None:
    method = small(norm_pix=norm_pix)
    batch, ctx = batch_of([3, 9, 11]), Context(7, 0, 10, seed=2)
    loss = method(batch, ctx)["loss"]

    videos, encoder, decoder = batch.views[0], method.encoder, method.decoder
    mask = tube_mask(3, 2, 16, 0.9, seed=2, step=7, sample_ids=batch.sample_ids)
    assert mask.mask.sum(1).tolist() == [2 * 14] * 3  # int(0.9 * 16) of each pair of frames
    assert torch.equal(*mask.mask.unflatten(1, (2, 16)).unbind(1))
    # By hand: the encoder on visible tokens alone, the decoder on all.
    tokens = encoder.patch_embed.proj(videos).flatten(2).transpose(1, 2) + encoder.pos_embed
    visible = encoder.norm(encoder.blocks(tokens[~mask.mask].view(3, 4, 32)))
    x = decoder.mask_token.expand(3, L, -1).clone()
    x[~mask.mask] = decoder.embed(visible).flatten(0, 1)
    prediction = decoder.head(decoder.norm(decoder.blocks(x + decoder.positions)))
    target = cubes_by_hand(videos)
    if norm_pix:  # the published code: each channel of a cube, unbiased variance
        spread = (target.var(-1, keepdim=True) + 1e-6).sqrt()
        target = (target - target.mean(-1, keepdim=True)) / spread
    else:  # pixels from 0 to 1: the published code undoes ImageNet's mean and deviation
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        mean, std = (torch.tensor(x).double().view(3, 1) for x in (mean, std))
        target = target * std + mean
    expected = (prediction - target.flatten(2)).square().mean(-1)[mask.mask].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_channels_are_normalised_apart() -> None:
    """So that a view's normalisation, which the published code undoes first, changes nothing."""
    method, batch = small(), batch_of([3, 9])
    scale, shift = (torch.tensor(x).view(3, 1, 1, 1) for x in ((0.2, 3.0, 1.0), (0.5, 0.0, -4.0)))
    outputs = method.encode(batch, Context(0, 0, 1))
    other = patchify(batch.views[0] * scale + shift, (2, 4, 4))
    losses = [
        method.loss((outputs[0], target, outputs[2]), Context(0, 0, 1))["loss"]
        for target in (outputs[1], other)
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0.0)


def test_what_is_hidden_depends_on_seed_step_and_sample_alone() -> None:
    method = small()

    def masks(ids: list[int], step: int = 3, seed: int = 1) -> Tensor:
        return method.mask(batch_of(ids), Context(step, 0, 10, seed=seed)).mask

    whole = masks([4, 8, 15, 16])
    assert torch.equal(whole, torch.cat([masks([4, 8]), masks([15, 16])]))  # two ranks
    assert not torch.equal(whole, masks([4, 8, 15, 16], step=4))
    assert not torch.equal(whole, masks([4, 8, 15, 16], seed=2))


def test_compiles_and_trains_in_bf16() -> None:
    method, batch = small(torch.float32), batch_of([3, 9, 11], torch.float32)
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(method), backend=graphs, fullgraph=True)
    for step in range(3):
        expected = method(batch, Context(step, 0, 10))["loss"]
        found = compiled(batch, Context(step, 0, 10, device_step=torch.tensor(step)))["loss"]
        torch.testing.assert_close(found, expected)
    assert graphs.frame_count == 1
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(batch, Context(2, 0, 10))["loss"]
    assert math.isclose(rounded.item(), expected.item(), rel_tol=0.03)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in method.encoder.parameters() if p.requires_grad)


def test_pictures_are_videos_and_a_perfect_decoder_reconstructs_them() -> None:
    method, batch, ctx = small().eval(), batch_of([3, 9]), Context(7, 0, 10, seed=2)
    videos = batch.views[0]
    mask = method.mask(batch, ctx).mask
    with torch.no_grad():
        pictures = method.pictures(batch, ctx)
        target = cubes_by_hand(videos)
        spread = (target.var(-1, keepdim=True) + 1e-6).sqrt()
        perfect = ((target - target.mean(-1, keepdim=True)) / spread).flatten(2)
        method.decoder.forward = lambda tokens, ids_restore: perfect
        again = method.pictures(batch, ctx)
    assert torch.equal(pictures["original"], videos)
    masked = cubes_by_hand(pictures["masked"])
    assert not masked[mask].any()
    assert torch.equal(masked[~mask], target[~mask])
    assert not torch.allclose(pictures["reconstructed"], videos)
    torch.testing.assert_close(again["reconstructed"], videos)


def test_pixels_from_0_to_1_come_back_as_views() -> None:
    constants = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)}
    method = small(norm_pix=False, **constants).eval()
    batch, ctx = batch_of([3, 9]), Context(7, 0, 10, seed=2)
    with torch.no_grad():
        pictures = method.pictures(batch, ctx)
        torch.testing.assert_close(pictures["original"], batch.views[0])
        _, target, mask = method.encode(batch, ctx)
        method.decoder.forward = lambda tokens, ids_restore: target
        again = method.pictures(batch, ctx)
    first = (batch.views[0][0, :, 0, 0, 0] * torch.tensor(constants["std"])).double()
    torch.testing.assert_close(
        target[0, 0, ::32], first + torch.tensor(constants["mean"]).double(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(again["reconstructed"], batch.views[0])
    assert not cubes_by_hand(pictures["masked"])[mask].any()
    with pytest.raises(ValueError, match="need the 3 numbers of the recipe, got"):
        small(norm_pix=False, mean=(0.5,))


def test_the_published_decoder_and_settings() -> None:
    encoder = models.create("vit_micro", **SHAPE, num_frames=4)
    method = methods.create("videomae", encoder)
    assert len(method.decoder.blocks) == 4
    assert small(decoder_heads=4).decoder.blocks[0].attn.num_heads == 4
    assert method.decoder.embed.out_features == 16  # half of the encoder's
    assert method.decoder.head.out_features == P
    assert method.mask_ratio == 0.9
    assert encoder(torch.randn(2, 3, 4, 16, 16)).shape == (2, 32)


def test_wrong_encoders_are_explained() -> None:
    with pytest.raises(
        ValueError, match=r"VideoMAE learns from videos.*build the encoder with num"
    ):
        methods.create("videomae", models.create("vit_micro", **SHAPE))
    video = models.create("vit_micro", **SHAPE, num_frames=4)
    for name in methods.names():
        if "video" not in methods.get(name).modalities:
            with pytest.raises(ValueError, match="build the encoder without num_frames"):
                methods.create(name, video)
    video.modality = "audio"
    for name in ("simclr", "videomae"):
        with pytest.raises(ValueError, match="is one for audio: choose another model"):
            methods.create(name, video)
    video.modality = "video"
    with pytest.raises(ValueError, match="leaves no patch of 16 visible"):
        small(mask_ratio=1.0)
    with pytest.raises(ValueError, match="is for videos of 4 frames, got 8"):
        video(torch.randn(1, 3, 8, 16, 16))
