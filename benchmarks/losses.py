"""The other losses, forward + backward: CLIP, SigLIP, MoCo, groups, Matryoshka, classification.

    python -m benchmarks.losses [--only clip]            the table, and JSON with --out

Each stands beside what people use for it, and beside its floor: torch.mm alone, for the products
that the fewest known FLOP need.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from benchmarks.harness import floors, peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.passes import forward_backward
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Run
from sslfast import functional, losses

SETS = 2  # of inputs, in turn


@dataclass
class Case:
    """One problem: its inputs, who solves it, and the products it cannot do without."""

    name: str
    inputs: Callable[[], Sequence[Tensor]]
    providers: dict[str, Callable[..., Tensor]]
    products: list[tuple[int, int, int, int]]  # (times, m, k, n)
    baseline: str
    without_memory: tuple[str, ...] = field(default=(floors.PRODUCTS,))

    @property
    def flop(self) -> float:
        """FLOP of the products."""
        return sum(2.0 * times * m * k * n for times, m, k, n in self.products)


def _features(n: int, d: int, count: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [
        F.normalize(torch.randn(n, d, device=device), dim=1).to(dtype).requires_grad_()
        for _ in range(count)
    ]


def _with(backend: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss by one backend, its backward pass included: it stays forced after the call."""

    def run(*inputs: Tensor) -> Tensor:
        sslfast.use_backend(backend)
        return loss(*inputs)

    return run


def clip_case(n: int, d: int, device: torch.device, dtype: torch.dtype) -> Case:
    """CLIP's two softmaxes with a learned scale."""

    def inputs() -> tuple[Tensor, ...]:
        scale = torch.tensor(100.0, device=device, requires_grad=True)
        return *_features(n, d, 2, device, dtype), scale

    providers: dict[str, Callable[..., Tensor]] = {
        "open_clip": peers.Lazy(lambda: peers.load_file("open_clip/loss.py").ClipLoss()),
        OURS: _with("auto", losses.ClipLoss()),
    }
    if device.type == "cuda":
        providers[f"{OURS} cuda"] = _with("cuda", losses.ClipLoss())
        providers |= {"memeff": peers.Lazy(_memeff), "Inf-CL": peers.Lazy(_inf_cl)}
    return Case(f"CLIP N={n} D={d}", inputs, providers, [(4, n, d, n)], "open_clip")


def _memeff() -> Callable[..., Tensor]:
    made = peers.load("memeff").MemoryEfficientCLIPLoss(
        temperature=0.01, normalized_inputs=True, stable=False
    )
    return lambda image, text, scale: made(image, text)


def _inf_cl() -> Callable[..., Tensor]:
    flash = peers.load("inf_cl").cal_flash_loss
    return lambda image, text, scale: (
        (flash(image, text, scale=scale).mean() + flash(text, image, scale=scale).mean()) / 2
    )


def siglip_case(n: int, d: int, device: torch.device, dtype: torch.dtype) -> Case:
    """SigLIP with a learned scale and bias."""

    def inputs() -> tuple[Tensor, ...]:
        numbers = (torch.tensor(v, device=device, requires_grad=True) for v in (10.0, -10.0))
        return *_features(n, d, 2, device, dtype), *numbers

    providers: dict[str, Callable[..., Tensor]] = {
        "open_clip": peers.Lazy(lambda: peers.load_file("open_clip/loss.py").SigLipLoss()),
        OURS: losses.SigLipLoss(),
    }
    if device.type == "cuda":
        providers["siglip-kernel"] = peers.Lazy(_siglip_kernel)
    return Case(f"SigLIP N={n} D={d}", inputs, providers, [(3, n, d, n)], "open_clip")


def _siglip_kernel() -> Callable[..., Tensor]:
    fused = peers.load("siglip_kernel").fused_siglip_loss
    return lambda image, text, scale, bias: fused(image, text, scale.log(), bias)


def moco_case(n: int, queue: int, d: int, device: torch.device, dtype: torch.dtype) -> Case:
    """A batch of queries against their keys and a queue, which the keys then enter."""

    def inputs() -> tuple[Tensor, ...]:
        query, key = _features(n, d, 2, device, dtype)
        return query, key.detach()

    bank = F.normalize(torch.randn(d, queue, device=device), dim=0).to(dtype)

    def eager(query: Tensor, key: Tensor) -> Tensor:
        """The loss of MoCo's reference implementation; its queue lies [D, K]."""
        positive = torch.einsum("nc,nc->n", query, key).unsqueeze(1)
        logits = torch.cat([positive, query @ bank.clone()], dim=1) / 0.07
        bank[:, :n] = key.T
        return F.cross_entropy(logits, torch.zeros(n, dtype=torch.int64, device=device))

    providers: dict[str, Callable[..., Tensor]] = {"eager": eager}
    size = queue, d

    def lightly() -> torch.nn.Module:
        made = peers.load("lightly.loss.ntx_ent_loss").NTXentLoss(0.07, memory_bank_size=size)
        return made.to(device)

    providers["lightly"] = peers.Lazy(lightly)
    providers[OURS] = losses.NTXentLoss(0.07, memory_bank_size=size).to(device)
    name = f"MoCo N={n} queue={queue} D={d}"
    return Case(name, inputs, providers, [(2, n, d, queue)], "eager")


def groups_case(n: int, d: int, device: torch.device, dtype: torch.dtype) -> Case:
    """Two views of samples in groups of four: seven positives a row, the mean of their -log p."""
    ids = torch.randperm(n, device=device) // 4

    def eager(x: Tensor, y: Tensor) -> Tensor:
        z, groups = torch.cat((x, y)), ids.repeat(2)
        itself = torch.eye(2 * n, dtype=torch.bool, device=device)
        log_p = (z @ z.T / 0.1).masked_fill(itself, -torch.inf).log_softmax(1)
        positive = (groups[:, None] == groups) & ~itself
        return -(log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()

    def peer() -> Callable[..., Tensor]:
        loss = peers.load("pytorch_metric_learning.losses").SupConLoss(temperature=0.1)
        return lambda x, y: loss(torch.cat((x, y)), ids.repeat(2))

    providers: dict[str, Callable[..., Tensor]] = {
        "eager": eager,
        "pytorch-metric-learning": peers.Lazy(peer),
        OURS: lambda x, y: functional.ntxent(x, y, 0.1, group_ids=ids),
    }
    m, inputs = 2 * n, partial(_features, n, d, 2, device, dtype)
    return Case(f"groups of 4, N={n} D={d}", inputs, providers, [(2, m, d, m)], "eager")


def matryoshka_case(n: int, d: int, device: torch.device, dtype: torch.dtype) -> Case:
    """NT-Xent of six prefixes, beside the loss of all features alone and the loop over prefixes."""
    dims = [d // 24, d // 12, d // 6, d // 3, 2 * d // 3, d]
    loss = losses.NTXentLoss(0.1)

    providers: dict[str, Callable[..., Tensor]] = {
        "NT-Xent, all features": loss,
        # A function and no loss of a known class: prefix after prefix.
        f"{OURS}, a loop": losses.MatryoshkaLoss(lambda x, y: loss(x, y), dims),
        OURS: losses.MatryoshkaLoss(loss, dims),
    }
    name, m = f"Matryoshka N={n} D={d}, {len(dims)} prefixes", 2 * n
    inputs = partial(_features, n, d, 2, device, dtype)
    return Case(name, inputs, providers, [(2, m, d, m)], "NT-Xent, all features")


def linear_case(n: int, d: int, v: int, device: torch.device, dtype: torch.dtype) -> Case:
    """Cross-entropy over a vocabulary, with gradients of the hidden states and the weight."""

    def inputs() -> tuple[Tensor, ...]:
        hidden = torch.randn(n, d, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(v, d, device=device) * 0.02).to(dtype).requires_grad_()
        return hidden, weight, torch.randint(v, (n,), device=device)

    def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ weight.T, targets)

    providers: dict[str, Callable[..., Tensor]] = {"eager": eager}
    if hasattr(F, "linear_cross_entropy"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        providers["F.linear_cross_entropy"] = F.linear_cross_entropy
        providers["F.linear_cross_entropy, chunked"] = lambda *a: F.linear_cross_entropy(
            *a, options=chunked
        )
        if device.type == "cuda":  # whose own choice adds 16-bit gradients up in 16 bits
            wide = torch.nn.LinearCrossEntropyOptions(acc_policy="balanced")
            providers["F.linear_cross_entropy, chunked, float32 sums"] = lambda *a: (
                F.linear_cross_entropy(*a, options=wide)
            )
    providers[OURS] = functional.linear_cross_entropy
    if device.type == "cuda":
        providers["cut-cross-entropy"] = peers.Lazy(lambda: _cce("high"))
        providers["cut-cross-entropy, exact"] = peers.Lazy(lambda: _cce(None))
    products = [(1, n, d, v), (1, n, v, d), (1, v, n, d)]
    return Case(f"linear cross-entropy N={n} D={d} V={v}", inputs, providers, products, "eager")


def _cce(filter_eps: str | None) -> Callable[..., Tensor]:
    """Small gradients are left out by default; None keeps all."""
    function = peers.load("cut_cross_entropy").linear_cross_entropy
    return lambda hidden, weight, targets: function(hidden, weight, targets, filter_eps=filter_eps)


def cases(device: torch.device, quick: bool) -> dict[str, Callable[[], Case]]:
    """The problems that the project's targets name, each made when it is called."""
    if device.type == "cpu":
        at = device, torch.float32
        small = 4 if quick else 1
        return {
            "clip": partial(clip_case, 8192 // small, 512, *at),
            "siglip": partial(siglip_case, 8192 // small, 512, *at),
            "moco": partial(moco_case, 256, 65536 // small, 128, *at),
            "groups": partial(groups_case, 2048 // small, 128, *at),
            "matryoshka": partial(matryoshka_case, 2048 // small, 768, *at),
            "linear": partial(linear_case, 4096 // small, 512, 30522, *at),
        }
    at = device, torch.bfloat16
    small = 4 if quick else 1
    return {
        "clip": partial(clip_case, 65536 // small, 512, *at),
        "siglip": partial(siglip_case, 32768 // small, 512, *at),
        "moco": partial(moco_case, 1024, 65536, 128, *at),
        "groups": partial(groups_case, 8192 // small, 128, *at),
        "matryoshka": partial(matryoshka_case, 8192 // small, 768, *at),
        "linear": partial(linear_case, 8192 // small, 2048, 128256, *at),
    }


def floor(case: Case, device: torch.device, dtype: torch.dtype) -> Run:
    """torch.mm for all products of the case, in strips of at most 2^25 elements."""
    runs = []
    for times, m, k, n in case.products:
        strip = max(min(m, (1 << 25) // n), 1)
        a = torch.randn(strip, k, device=device).to(dtype)
        b = torch.randn(k, n, device=device).to(dtype)
        runs.append((times * m // strip, a, b, torch.empty(strip, n, dtype=dtype, device=device)))

    def run(turn: int) -> None:
        for count, a, b, out in runs:
            for _ in range(count):
                torch.mm(a, b, out=out)

    return run


def runs(case: Case, device: torch.device) -> dict[str, Run]:
    """Everything that is timed for one problem."""
    inputs = [case.inputs() for _ in range(SETS)]
    table = {name: forward_backward(loss, inputs) for name, loss in case.providers.items()}
    table[floors.PRODUCTS] = floor(case, device, inputs[0][0].dtype)
    return table


def measure(record: Record, case: Case) -> None:
    """Try and time everything of one problem."""
    record.measure(
        case.name,
        partial(runs, case, record.device),
        5.0 if record.quick else 40.0,
        flop=case.flop,
        without_memory=case.without_memory,
        baseline=case.baseline,
        floor=floors.PRODUCTS,
    )


def main() -> int:
    """Print the tables and write the results."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    names = "clip", "siglip", "moco", "groups", "matryoshka", "linear"
    parser.add_argument("--only", nargs="+", choices=names)
    options = parser.parse_args()
    record = Record("losses", options)
    for name, make in cases(record.device, record.quick).items():
        if name in (options.only or [name]):
            measure(record, make())
    sslfast.use_backend("auto")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
