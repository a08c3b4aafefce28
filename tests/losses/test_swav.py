"""SwAV: Sinkhorn's shifts, lightly's class, overflow, ranks, bad input."""

from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import peers
from sslfast.functional import sinkhorn
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE
from sslfast.kernels.sinkhorn import Problem, reference, tiled
from sslfast.losses import SwaVLoss

K, D = 13, 6


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=dtype), dim=-1)


def codes(x: Tensor, w: Tensor, bias: Tensor, epsilon: float = 0.05) -> Tensor:
    return (x @ w.T / epsilon + bias).softmax(1)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_codes_are_those_of_scaling_in_turn(rows: int, iterations: int) -> None:
    x, w = unit(rows, D), unit(K, D)
    theirs = peers.load("lightly.loss.swav_loss").sinkhorn(x @ w.T, iterations, 0.05)
    found = codes(x, w, sinkhorn(x, w, iterations=iterations))
    torch.testing.assert_close(found, theirs)
    if iterations == 30 and rows > K:  # every prototype is used alike
        torch.testing.assert_close(
            found.sum(0), torch.full((K,), rows / K).double(), rtol=0.1, atol=0
        )


def check_a_rank_without_rows(backend: Any, x: Tensor, w: Tensor, scale: Tensor) -> None:
    seen: list[Tensor] = []

    def merged(lse: Tensor) -> Tensor:
        seen.append(lse.clone())
        return torch.zeros_like(lse)  # another rank's

    assert backend.log_scaling(x[:0], w, scale, 3, merged).eq(0).all()
    assert len(seen) == 3
    assert torch.stack(seen).eq(-torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("block", [5 * 31, 1 << 20], ids=["blocks", "kept"])
def test_backends_against_the_oracle(
    dtype: torch.dtype, iterations: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", block)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x, w, scale = 3 * torch.randn(23, 9), torch.randn(31, 9), torch.tensor(20.0, dtype=acc)
    x, w = x.to(dtype), w.to(dtype)  # scores of some hundreds
    wide = x.double(), w.double(), scale.double()
    truth = reference.log_scaling(*wide, iterations, lambda lse: lse)
    for backend in registry.candidates("sinkhorn"):
        if backend.refusal(Problem("cpu", dtype, 23, 31, 9)) is None:
            found = backend.module.log_scaling(x, w, scale, iterations, lambda lse: lse)
            assert found.dtype == acc
            torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-3)
            check_a_rank_without_rows(backend.module, x, w, scale)
    given_op = x, w, scale, 3, None
    torch.library.opcheck(getattr(torch.ops, NAMESPACE).sinkhorn.default, given_op)


def test_scores_of_half_precision_do_not_overflow() -> None:
    x, w = unit(20, D), unit(K, D)
    exact = codes(
        x.half().double(),
        w.half().double(),
        sinkhorn(x.half().double(), w.half().double(), temperature=0.002),
        0.002,
    )
    bias = sinkhorn(x.half(), w.half(), temperature=0.002)  # exp(500)
    found = codes(x.half().double(), w.half().double(), bias.double(), 0.002)
    assert bias.isfinite().all()
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-3)
    x[3, 0] = torch.nan
    assert sinkhorn(x, w).isnan().all()


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("queue", [False, True])
def test_it_is_lightlys_class(features: bool, queue: bool) -> None:
    settings = {"temperature": 0.2, "sinkhorn_iterations": 4, "sinkhorn_epsilon": 0.1}
    theirs = peers.load("lightly.loss").SwaVLoss(**settings)
    ours = SwaVLoss(**settings)
    w = unit(K, D).requires_grad_()
    high, low = ([unit(7, D).requires_grad_() for _ in range(n)] for n in (2, 4))
    held = [unit(9, D) for _ in range(2)] if queue else None
    scores = [[x @ w.T for x in side] for side in (high, low)]
    expected = theirs(*scores, None if held is None else [x @ w.T for x in held]).squeeze()
    if features:
        loss = ours(high, low, held, weight=w)
    else:
        loss = ours(*scores, None if held is None else [x @ w.T for x in held])
    torch.testing.assert_close(loss, expected)
    inputs = [*high, *low, w]
    found = [torch.autograd.grad(x, inputs, retain_graph=True) for x in (loss, expected)]
    torch.testing.assert_close(*found)
    parts = ours.parts(high, low, held, weight=w)
    assert parts.entropy.shape == (2, 7)
    torch.testing.assert_close(parts.usage.sum(), torch.ones(()).double())


def test_without_iterations_codes_are_softmaxes() -> None:
    x, w = [unit(7, D) for _ in range(2)], unit(K, D)
    scores = [z @ w.T for z in x]
    swapped = zip(scores, scores[::-1], strict=True)
    each = [-((a / 0.05).softmax(1) * (b / 0.1).log_softmax(1)).sum(1).mean() for a, b in swapped]
    criterion = SwaVLoss(sinkhorn_iterations=0)
    torch.testing.assert_close(criterion(x, [], weight=w), torch.stack(each).mean())
    torch.testing.assert_close(criterion(scores, []), torch.stack(each).mean())


def on_all_ranks(rank: int, size: int, sizes: list[int]) -> None:
    torch.manual_seed(3)
    w = unit(K, D)
    everything = [[unit(n, D) + r for _ in range(5)] for r, n in enumerate(sizes)]
    whole = [torch.cat(view) for view in zip(*everything, strict=True)]
    for features in (True, False):
        leaf, truth = w.clone().requires_grad_(), w.clone().requires_grad_()

        def loss_of(
            criterion: SwaVLoss, views: list[Tensor], weight: Tensor, f: bool = features
        ) -> Tensor:
            given: dict[str, Any] = {"weight": weight} if f else {}
            outputs = views if f else [x @ weight.T for x in views]
            return criterion(outputs[:2], outputs[2:], **given)

        expected = loss_of(SwaVLoss(), whole, truth)
        expected.backward()
        loss = loss_of(SwaVLoss(sinkhorn_gather_distributed=True), everything[rank], leaf)
        loss.backward()
        gradient = leaf.grad
        assert gradient is not None
        for part in (total := loss.detach().clone(), gradient):
            dist.all_reduce(part)
        torch.testing.assert_close(total / size, expected.detach())
        torch.testing.assert_close(gradient / size, truth.grad)
    rows = everything[rank][0][: 0 if rank else None]  # ranks without rows
    shift = sinkhorn(rows, w, gather_distributed=True)
    torch.testing.assert_close(shift, sinkhorn(everything[0][0], w))


@pytest.mark.parametrize("sizes", [[9], [5, 2], [1, 6, 3]], ids=str)
def test_averages_of_ranks_are_what_one_process_has(sizes: list[int]) -> None:
    processes.run(len(sizes), on_all_ranks, sizes)


def test_compile_fullgraph() -> None:
    criterion, w = SwaVLoss(), unit(K, D, dtype=torch.float32)
    views = [unit(6, D, dtype=torch.float32).requires_grad_() for _ in range(3)]

    def loss() -> Tensor:
        value: Tensor = criterion(views[:2], views[2:], weight=w)
        return value

    compiled = torch.compile(loss, fullgraph=True)()
    torch.testing.assert_close(compiled, loss())
    torch.testing.assert_close(*(torch.autograd.grad(x, views) for x in (compiled, loss())))


def test_bad_input() -> None:
    x, w = torch.randn(4, D), torch.randn(K, D)
    criterion = SwaVLoss()
    with pytest.raises(ValueError, match="learns the codes of another, and there is one"):
        criterion([x], [], weight=w)
    with pytest.raises(ValueError, match="queue_outputs must be one for each of the 2 whole"):
        criterion([x, x], [], [x], weight=w)
    with pytest.raises(ValueError, match="must have the same D"):
        criterion([x, x], [], weight=w[:, 1:])
    with pytest.raises(ValueError, match="high_resolution_outputs has no views"):
        criterion([], [x], weight=w)
    with pytest.raises(ValueError, match="sinkhorn_epsilon must be more than 0"):
        SwaVLoss(sinkhorn_epsilon=0.0)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        sinkhorn(x, w, iterations=0)
    with pytest.raises(ValueError, match="nothing to compare"):
        sinkhorn(x[:0], w)
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        sinkhorn(x.int(), w)
