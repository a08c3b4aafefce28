"""Selection, visible patches and their loss on CUDA tensors, against the CPU and float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sslfast
from sslfast.functional import gather_patches, masked_mse, patchify_visible, restore_with_tokens
from sslfast.kernels import registry
from sslfast.kernels.gather_patches import op as gather
from sslfast.kernels.patch_mask import op as masks
from sslfast.kernels.patchify_visible import op as patchify
from sslfast.masking import (
    block_mask,
    image_ratio_mask,
    multiblock_mask,
    random_mask,
    span_mask,
    token_mask,
    tube_mask,
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def cuda_backends(op: str) -> list[str]:
    return [
        b.name
        for b in registry.candidates(op)
        if b.unavailable() is None and b.module.DEVICE in ("cuda", "any")
    ]


@pytest.mark.parametrize("name", cuda_backends("patch_mask"))
@pytest.mark.parametrize(
    ("batch", "length", "keep"), [(4096, 196, 49), (7, 1, 0), (33, 1568, 160), (5, 4096, 1000)]
)
def test_selection_gives_the_bits_of_the_cpu(name: str, batch: int, length: int, keep: int) -> None:
    ids, step = torch.randint(-(2**62), 2**62, (batch,)), torch.tensor(2**33 + 5)
    keys = torch.randint(2**40, (batch, length)) >> torch.randint(40, (batch, 1))
    counts = torch.randint(-1, length + 2, (batch,))
    mask = torch.rand(batch, length) < 0.6

    def all_three(device: str) -> list[Tensor]:
        given = [t.to(device) for t in (ids, step, keys, counts, mask)]
        return [
            *masks.random_patch_mask(*given[:2], -7, 3, length, keep),
            masks.smallest_keys(*given[2:4]),
            *masks.compact_mask(given[4], keep),
        ]

    truth = all_three("cpu")
    with sslfast.use_backend(name):
        for a, b in zip(all_three("cuda"), truth, strict=True):
            assert torch.equal(a.cpu(), b)


def test_samplers_give_the_bits_of_the_cpu_and_never_synchronise() -> None:
    text = torch.randint(5, 1000, (64, 50))
    samplers: dict[str, Any] = {
        "random": lambda d: random_mask(64, 196, seed=1, step=2, device=d),
        "tube": lambda d: tube_mask(64, 8, 196, seed=1, step=2, device=d),
        "block": lambda d: block_mask(64, (14, 14), seed=1, step=2, device=d),
        "ratio": lambda d: [image_ratio_mask(64, (14, 14), seed=1, step=2, device=d)],
        "multiblock": lambda d: multiblock_mask(64, (14, 14), seed=1, step=2, device=d),
        "span": lambda d: [span_mask(64, 400, seed=1, step=2, device=d)],
    }
    for name, sampler in samplers.items():
        truth = sampler("cpu")
        sampler("cuda")  # tables are uploaded and kernels compiled once
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = sampler("cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for a, b in zip(got, truth, strict=True):
            assert torch.equal(a.cpu(), b), name
    for a, b in zip(
        token_mask(text.cuda(), 1000, 4, seed=1), token_mask(text, 1000, 4, seed=1), strict=True
    ):
        assert torch.equal(a.cpu(), b)


def test_a_step_on_the_device_gives_the_bits_of_the_number_and_never_synchronises() -> None:
    """As methods draw: the trainer makes the tensor by a fill, which waits for nothing."""
    ids = torch.arange(64, device="cuda")
    samplers: dict[str, Any] = {
        "random": lambda step: random_mask(64, 196, seed=1, step=step, sample_ids=ids),
        "tube": lambda step: tube_mask(64, 8, 196, seed=1, step=step, sample_ids=ids),
        "block": lambda step: block_mask(64, (14, 14), seed=1, step=step, sample_ids=ids),
    }
    for name, sampler in samplers.items():
        truth = sampler(7)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = sampler(torch.full((), 7, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for a, b in zip(got, truth, strict=True):
            assert torch.equal(a, b), name


def test_mask_and_gather_are_two_launches() -> None:
    tokens, step = torch.randn(64, 196, 64, device="cuda"), torch.tensor(3, device="cuda")
    ids = torch.arange(64, device="cuda")
    for name in cuda_backends("patch_mask"):
        if name in ("reference", "tiled"):
            continue
        with sslfast.use_backend(name):

            def both() -> Tensor:
                kept, _, _ = masks.random_patch_mask(ids, step, 0, 0, 196, 49)
                return gather.gather_patches(tokens, kept)

            both()
            torch.cuda.synchronize()
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            ) as profile:
                both()
                torch.cuda.synchronize()
        kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) <= 2, (name, [e.name for e in kernels])


@pytest.mark.parametrize("name", [n for n in cuda_backends("patchify_visible") if n != "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_autoencoder_against_float64(name: str, dtype: torch.dtype) -> None:
    """Values and all gradients of the four functions, one after the other."""
    images = torch.randn(16, 3, 224, 224, device="cuda").to(dtype)
    weight = torch.randn(129, 3, 16, 16, device="cuda").to(dtype) / 28
    token, positions = (torch.randn(*s, 129, device="cuda").to(dtype) for s in ((), (196,)))
    target = torch.randn(16, 196, 129, device="cuda").to(dtype)
    kept = random_mask(16, 196, seed=1, device="cuda")

    def run(backend: str, wide: bool) -> tuple[Tensor, ...]:
        given = [t.double() if wide else t.clone() for t in (weight, token, positions)]
        leaves = [t.requires_grad_() for t in given]
        pixels, wanted = (t.double() if wide else t for t in (images, target))
        with sslfast.use_backend(backend):
            seen = patchify_visible(pixels, kept.ids_keep, leaves[0], None, leaves[2])
            seen = seen + gather_patches(leaves[2].expand(16, -1, -1), kept.ids_keep)
            decoded = restore_with_tokens(seen, leaves[1], kept.ids_restore, leaves[2])
            loss = masked_mse(decoded, wanted, kept.mask, norm_target=True)
            return loss.detach(), *torch.autograd.grad(loss, leaves)

    truth, eager = run("reference", True), run("reference", False)
    got, again = run(name, False), run(name, False)
    for value, base, exact, repeated in zip(got, eager, truth, again, strict=True):
        assert torch.equal(value, repeated)
        size = exact.norm()
        error, allowed = ((v.double() - exact).norm() / size for v in (value, base))
        assert error <= allowed + TOLERANCE[dtype]


@pytest.mark.parametrize("name", [n for n in cuda_backends("patchify_visible") if n != "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_patches_of_views_that_begin_anywhere(name: str, dtype: torch.dtype) -> None:
    shapes = ((4, 3, 1, 64, 64), (192, 3, 1, 16, 16), (192,), (16, 192))
    given = [
        torch.randn(1 + math.prod(shape), device="cuda").to(dtype)[1:].view(shape)
        for shape in shapes
    ]
    ids = torch.randint(16, (1 + 4 * 5,), device="cuda")[1:].view(4, 5)
    with sslfast.use_backend(name):
        found = patchify.patchify_visible(*given, ids)
        assert torch.equal(
            found, patchify.patchify_visible(*(t.clone() for t in given), ids.clone())
        )


def test_masks_in_a_cuda_graph() -> None:
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    tokens = torch.randn(8, 196, 32, device="cuda")
    for _ in range(2):
        random_mask(8, 196, seed=1, step=step)
        block_mask(8, (14, 14), seed=1, step=step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = random_mask(8, 196, seed=1, step=step)
        blocks = block_mask(8, (14, 14), seed=1, step=step)
        seen = gather_patches(tokens, kept.ids_keep)
    for n in (0, 5):
        step.fill_(n)
        graph.replay()
        truth = random_mask(8, 196, seed=1, step=n)
        assert torch.equal(kept.mask.cpu(), truth.mask)
        assert torch.equal(blocks.mask.cpu(), block_mask(8, (14, 14), seed=1, step=n).mask)
        assert torch.equal(seen, gather_patches(tokens, truth.ids_keep.cuda()))
