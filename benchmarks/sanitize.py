"""Small, ragged problems through every GPU kernel, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python -m benchmarks.sanitize [--backend cuda]

``python -m benchmarks.gpu --sanitize`` builds the CUDA C++ kernels with their own checks and runs
this under memcheck and racecheck.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import sslfast
from sslfast import EMATeacher, functional
from sslfast.kernels import registry
from sslfast.kernels.matryoshka_softmax.op import matryoshka_softmax
from sslfast.kernels.patch_mask.op import compact_mask, random_patch_mask, smallest_keys
from sslfast.kernels.philox.op import random_bits
from sslfast.kernels.prototype_cross_entropy.op import weighted_prototype_loss
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.optim import LARS, AdamW

SHAPES = ((130, 0, 123), (70, 300, 64), (33, 2000, 128), (40, 40, 300))  # (M, N or symmetric, D)
DEVICE = "cuda"
ARITHMETICS = ("ieee", "tf32")
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def similarity_softmax(backend: str, dtype: torch.dtype, m: int, n: int, dim: int) -> None:
    """Forward and backward with statistics of either side or both."""
    module = next(b for b in registry.candidates("similarity_softmax") if b.name == backend).module
    x = torch.randn(m, dim, device=DEVICE).to(dtype)
    y = torch.randn(n, dim, device=DEVICE).to(dtype) if n else None
    pairing = Pairing(m, 3, 0, 0) if n else Pairing(m, m // 2, leave_out_self=True)
    scale = torch.tensor(0.1, device=DEVICE)
    lse, _, lse_columns = module.forward(x, y, scale, pairing, True)
    row, column = (lse, torch.ones_like(lse)), (lse_columns, torch.ones_like(lse_columns))
    for sides in ((row, column), (row, None), (None, column)):
        module.backward(x, y, scale, pairing, *sides)


def with_precision(precision: str, backend: str, *problem: Any) -> None:
    """The same in this arithmetic of float32 products."""
    torch.backends.cuda.matmul.fp32_precision = precision
    similarity_softmax(backend, *problem)


def losses(dtype: torch.dtype) -> None:
    """The losses with kernels of their own."""
    x, y = (torch.randn(70, 100, device=DEVICE).to(dtype).requires_grad_() for _ in range(2))
    functional.ntxent(x, y, 0.1).backward()
    functional.siglip(x, y, 10.0, -10.0).backward()
    groups = {"group_ids": torch.arange(70, device=DEVICE) // 3, "false_negative_threshold": 0.5}
    functional.ntxent(x, y, 0.1, **groups).backward()
    functional.clip(x, y, 10.0, **groups).backward()
    functional.linear_cross_entropy(x, y, torch.arange(70, device=DEVICE)).backward()
    functional.barlow_twins(x, y).backward()
    functional.vicreg(x, y).backward()
    functional.sigreg(x, F.normalize(torch.randn(70, 100, device=DEVICE), dim=1)).backward()
    scale = torch.tensor(10.0, device=DEVICE)
    lse, positive, _ = matryoshka_softmax(x, y, scale, (7, 100), Pairing(70), normalize=True)
    (lse - positive).sum().backward()
    rows = x.unflatten(0, (2, 35))  # two views of 35 samples, each to learn from the other
    weight, pairs = torch.full((2, 35), 0.1, device=DEVICE), 1 - torch.eye(2, device=DEVICE)
    sides = rows, y, rows.detach(), y.detach(), scale, scale, torch.zeros(2, 70, device=DEVICE)
    weighted_prototype_loss(*sides, pairs, weight, True, True)[0].backward()


def patches(dtype: torch.dtype) -> None:
    """Masks, the visible patches, the decoder's input and the loss."""
    ids, step = torch.arange(37, device=DEVICE), torch.tensor(5, device=DEVICE)
    random_bits(ids, step, 1, 2, 197)
    keep, restore, mask = random_patch_mask(ids, step, 1, 2, 196, 49)
    smallest_keys(torch.randint(1 << 40, (37, 197), device=DEVICE), ids)
    compact_mask(mask, 49)
    tokens = torch.randn(37, 196, 129, device=DEVICE).to(dtype).requires_grad_()
    seen = functional.gather_patches(tokens, keep)
    token = torch.randn(129, device=DEVICE).to(dtype).requires_grad_()
    restored = functional.restore_with_tokens(seen, token, restore)
    functional.masked_mse(restored, tokens.detach(), mask, norm_target=True).backward()
    images = torch.randn(37, 3, 42, 42, device=DEVICE).to(dtype)
    weight = torch.randn(33, 3, 3, 3, device=DEVICE).to(dtype).requires_grad_()
    functional.patchify_visible(images, keep, weight).sum().backward()


def tensors(dtype: torch.dtype) -> None:
    """Moving averages and optimisers, with addresses that are no multiple of 16 bytes too."""
    sizes = (0, 1, 1023, 16385)
    student = [torch.randn(n + 1, device=DEVICE).to(dtype)[s:] for n in sizes for s in (0, 1)]
    functional.ema_update_([torch.zeros_like(t) for t in student], student, 0.9)
    for make in (AdamW, LARS):
        net = nn.ParameterList(torch.randn(n, device=DEVICE).to(dtype) for n in sizes[1:])
        teacher = EMATeacher(net, 0.5)
        for p in net:
            p.grad = torch.ones_like(p)
        make(net.parameters(), lr=0.1, ema=teacher, max_norm=1.0).step()


def works(backend: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything, by name; ops that have no such backend choose for themselves."""
    for precision in ARITHMETICS:
        for dtype, shape in itertools.product(TYPES, SHAPES):
            if precision == "ieee" or dtype == torch.float32:
                name = f"similarity_softmax {precision} {dtype} {shape}"
                yield name, partial(with_precision, precision, backend, dtype, *shape)
    for work in (losses, patches, tensors):
        for dtype in TYPES:
            yield f"{work.__name__} {dtype}", partial(work, dtype)


def main() -> int:
    """Run everything once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["cuda", "triton"], default="cuda")
    backend = parser.parse_args().backend
    sslfast.use_backend(backend)
    for name, work in works(backend):
        print(name, flush=True)
        work()
        torch.cuda.synchronize()
    print("every kernel ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
