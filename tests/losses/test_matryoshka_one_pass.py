"""MatryoshkaLoss in one sweep equals the loop over its prefixes."""

import math
from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from test_distributed import Towers
from torch import Tensor, nn

import sslfast
from sslfast.kernels.matryoshka_softmax import op as ops
from sslfast.losses import ClipLoss, InfoNCE, MatryoshkaLoss, NTXentLoss
from sslfast.losses._prefixes import losses_of_prefixes

DIMS, WEIGHTS = (40, 7, 96), (1.0, 0.5, 0.25)  # in any order


class Loop(nn.Module):
    """Hides the class of a loss, so that its prefixes are taken one after the other."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.loss(*args, **kwargs)


LOSSES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "ntxent": (NTXentLoss(0.2), False),
    "info_nce": (InfoNCE(0.1), False),
    "info_nce rows": (InfoNCE(0.1, "none"), True),
    "info_nce sum": (InfoNCE(torch.tensor(0.1), "sum"), False),
    "clip": (ClipLoss(), True),
    "clip as given": (ClipLoss(), False),
    "clip to text": (ClipLoss(direction="image_to_text"), True),
    "clip to image": (ClipLoss(direction="text_to_image"), True),
}


def both_ways(
    name: str, dtype: torch.dtype, n: int, needs: tuple[bool, bool] = (True, True)
) -> list[list[Tensor]]:
    """Value and gradients in one sweep, and by the loop."""
    loss, normalize = LOSSES[name]
    inputs = [torch.randn(n, 100, dtype=dtype) / 10 for _ in "xy"]
    found = []
    for each in (loss, Loop(loss)):
        leaves = [x.clone().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.tensor(8.0, dtype=wide, requires_grad=True)
        given = [*leaves, scale] if "clip" in name else leaves
        value = MatryoshkaLoss(each, DIMS, WEIGHTS, normalize=normalize)(*given)
        wanted = [x for x in given if x.requires_grad]
        weight = torch.linspace(1, 2, value.numel()).reshape(value.shape).to(value.dtype)
        found.append([value.detach(), *torch.autograd.grad(value, wanted, weight)])
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_equals_the_loop_in_float64(name: str, backend: str) -> None:
    with sslfast.use_backend(backend):
        for needs in ((True, True), (True, False), (False, True)):
            for ours, loop in zip(*both_ways(name, torch.float64, 9, needs), strict=True):
                torch.testing.assert_close(ours, loop)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [1, 5, 330])
def test_equals_the_loop_in_float32(name: str, n: int) -> None:
    for ours, loop in zip(*both_ways(name, torch.float32, n), strict=True):
        largest = loop.abs().max().item()
        torch.testing.assert_close(ours, loop, rtol=2e-5, atol=2e-6 * max(largest, 1.0))


def error(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, truth, strict=True)]


@pytest.mark.parametrize("name", ["ntxent", "info_nce", "clip"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_error_is_no_larger_than_the_loops(name: str, dtype: torch.dtype) -> None:
    loss, normalize = LOSSES[name]
    inputs = [torch.randn(150, 96).to(dtype) for _ in "xy"]

    def run(each: Callable[..., Tensor], to: torch.dtype) -> list[Tensor]:
        leaves = [x.to(to).requires_grad_() for x in inputs]
        rest = [torch.tensor(20.0)] if name == "clip" else []
        value = MatryoshkaLoss(each, DIMS, WEIGHTS, normalize=normalize)(*leaves, *rest)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    truth = run(Loop(loss), torch.float64)
    ours, loop = (error(run(each, dtype), truth) for each in (loss, Loop(loss)))
    for found, theirs in zip(ours, loop, strict=True):
        assert found <= 1.5 * theirs + 1e-6


def test_what_runs_in_one_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the op for the forms that have it, none for the others."""
    calls: list[int] = []
    forward = ops._matryoshka_softmax

    def counted(*args: Any) -> Any:
        calls.append(1)
        return forward(*args)

    monkeypatch.setattr(ops, "_matryoshka_softmax", counted)
    x, y, keys = torch.randn(3, 6, 8)

    class Mine(NTXentLoss):
        def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
            return 2 * super().forward(out0, out1)

    one_sweep = {NTXentLoss(): (x, y), InfoNCE(): (x, y), ClipLoss(): (x, y, 2.0)}
    for loss, inputs in one_sweep.items():
        calls.clear()
        MatryoshkaLoss(loss, (4, 8))(*inputs)
        assert len(calls) == 1
    calls.clear()
    MatryoshkaLoss(InfoNCE(), (4, 8))(x, y, keys)
    MatryoshkaLoss(Mine(), (4, 8))(x, y)
    MatryoshkaLoss(NTXentLoss(), (8, 8))(x, y)
    ids = torch.arange(6) // 2
    MatryoshkaLoss(ClipLoss(), (4, 8))(x, y, 2.0, group_ids=ids, negatives=keys)
    MatryoshkaLoss(ClipLoss(false_negative_threshold=0.5), (4, 8))(x, y, 2.0)
    assert losses_of_prefixes(ClipLoss(), (4, 8), False, (x, y, 2.0, None, True), {}) is None
    assert not calls


def over_ranks(rank: int, size: int, sizes: list[int]) -> None:
    """In one sweep, and equal to the loop over the whole batch."""
    calls: list[int] = []
    forward = ops._matryoshka_softmax

    def counted(*args: Any) -> Any:
        calls.append(1)
        return forward(*args)

    ops._matryoshka_softmax = counted  # in this process alone
    ranks = {"rank": rank, "world_size": size}
    group = dist.group.WORLD
    cases: list[tuple[nn.Module, nn.Module, int]] = [
        (NTXentLoss(0.2, gather_distributed=True), NTXentLoss(0.2), 1),
        (InfoNCE(0.2, process_group=group), InfoNCE(0.2), 1),
        (NTXentLoss(0.2, gather_distributed=True, exchange="ring"), NTXentLoss(0.2), 0),
    ]
    for direction, sweeps in (("both", 2), ("image_to_text", 1), ("text_to_image", 1)):
        for local in (True, False):
            loss = ClipLoss(local, **ranks, direction=direction)
            cases.append((loss, ClipLoss(direction=direction), sweeps))
    for loss, alone, sweeps in cases:
        towers = Towers(rank, sizes)
        scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
        rest = [scale] if isinstance(loss, ClipLoss) else []
        options = {"dims": (5, 3, 8), "weights": WEIGHTS, "normalize": bool(rest)}
        calls.clear()
        ours = MatryoshkaLoss(loss, **options)(*towers.own, *rest)
        assert len(calls) == sweeps
        truth = MatryoshkaLoss(Loop(alone), **options)(*towers.whole, *rest)
        if rest and not loss.local_loss:
            torch.testing.assert_close(ours.detach(), truth.detach())
        towers.compare(ours, truth, size, *rest)


@pytest.mark.parametrize("sizes", [[5, 2], [1, 6, 3]], ids=str)
def test_over_ranks_the_gradient_is_that_of_one_process(sizes: list[int]) -> None:
    processes.run(len(sizes), over_ranks, sizes)


def test_embeddings_of_other_widths_are_cut_as_by_the_loop() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 7)
    found = [MatryoshkaLoss(each, (2, 4))(x, y) for each in (InfoNCE(), Loop(InfoNCE()))]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_loss_are_called(register: str) -> None:
    loss, calls = NTXentLoss(), []
    getattr(loss, register)(lambda *_: calls.append(1))
    MatryoshkaLoss(loss, (2, 4))(*torch.randn(2, 6, 4))
    assert len(calls) == 2


def test_repeated_dims_and_a_bias() -> None:
    x, y = torch.randn(2, 6, 8, dtype=torch.float64)
    bias = torch.zeros(1, requires_grad=True)
    ours = MatryoshkaLoss(ClipLoss(), (8, 4, 8), (1.0, 2.0, 3.0))(x, y, 2.0, logit_bias=bias)
    whole, half = (ClipLoss()(x[:, :m], y[:, :m], 2.0) for m in (8, 4))
    torch.testing.assert_close(ours.double(), 4 * whole + 2 * half, rtol=1e-6, atol=0)
    assert torch.autograd.grad(ours, bias)[0] == 0


def test_a_prefix_of_zeros_has_no_direction() -> None:
    x, y = torch.randn(2, 6, 64)
    x[2, :32] = 0
    x.requires_grad_()
    for loss in (NTXentLoss(0.2), Loop(NTXentLoss(0.2))):
        (gradient,) = torch.autograd.grad(MatryoshkaLoss(loss, (32, 64))(x, y), x)
        assert gradient.isfinite().all()
        assert gradient[2].norm() > 0
    (alone,) = torch.autograd.grad(NTXentLoss(0.2)(x, y), x)
    (ours,) = torch.autograd.grad(MatryoshkaLoss(NTXentLoss(0.2), (32, 64))(x, y), x)
    torch.testing.assert_close(ours[2], alone[2], rtol=1e-4, atol=1e-6)


def test_bad_inputs_are_refused_as_by_the_loss() -> None:
    with pytest.raises(ValueError, match="out0 and out1 must have the same shape"):
        MatryoshkaLoss(NTXentLoss(), (2, 4))(torch.randn(3, 4), torch.randn(2, 4))
    x, y = torch.randn(2, 3, 4)
    clip = MatryoshkaLoss(ClipLoss(), (2, 4))
    for call, message in (
        (lambda: clip(x, y), r"ClipLoss.forward\(\) missing .* 'logit_scale'"),
        (lambda: clip(x, y, 2.0, groups=x), r"ClipLoss.forward\(\) got an unexpected .* 'groups'"),
        (lambda: clip(x, y, math.nan), "logit_scale must be a finite number"),
        (lambda: clip(x, y, 2.0, None, False, None), r"ClipLoss.forward\(\) takes .* positional"),
        (lambda: clip(x, y, 2.0, image_features=x), "multiple values for argument"),
        (
            lambda: MatryoshkaLoss(NTXentLoss(), (2, 4))(x, y, labels=x),
            r"NTXentLoss.forward\(\) got an unexpected .* 'labels'",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    for call, message in (
        (
            lambda: MatryoshkaLoss(ClipLoss(positives="inside"), (2, 4))(x, y, 2.0),
            "positives='inside' needs group_ids",
        ),
        (lambda: clip(x, y, 2.0, torch.arange(3)), "logit_bias must be one floating-point number"),
        (
            lambda: MatryoshkaLoss(NTXentLoss(memory_bank_size=(8, 4)), (2, 4)),
            "leave out the loss's memory_bank_size",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
