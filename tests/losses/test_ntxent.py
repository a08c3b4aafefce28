"""NTXentLoss against lightly's own class, plain PyTorch in float64, and bad input."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import peers
import sslfast
from sslfast.functional import ntxent
from sslfast.losses import DCLLoss, InfoNCE, NTXentLoss, SupConLoss

lightly = peers.load("lightly.loss.ntx_ent_loss")


def eager(out0: Tensor, out1: Tensor, temperature: float | Tensor) -> Tensor:
    """Per-row losses straight from equation 1 of the SimCLR paper."""
    z = F.normalize(torch.cat((out0, out1)), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    targets = torch.arange(len(z)).roll(len(out0))
    return F.cross_entropy(logits, targets, reduction="none")


def pair(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(n, d, dtype=dtype, requires_grad=True),
        torch.randn(n, d, dtype=dtype, requires_grad=True),
    )


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01, -0.3])
@pytest.mark.parametrize("n", [1, 2, 37, 300])
def test_equals_lightly(n: int, temperature: float) -> None:
    a, b = pair(n, 24, torch.float64)
    ours = NTXentLoss(temperature)(a, b)
    theirs = lightly.NTXentLoss(temperature)(a, b)
    torch.testing.assert_close(ours, theirs)
    grads = torch.autograd.grad(ours, (a, b))
    for value, truth in zip(grads, torch.autograd.grad(theirs, (a, b)), strict=True):
        torch.testing.assert_close(value, truth)


def test_memory_bank_equals_lightly_step_by_step() -> None:
    ours, theirs = NTXentLoss(0.1, (32, 8)), lightly.NTXentLoss(0.1, (32, 8))
    assert ours.memory_bank is not None
    theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
    for _ in range(7):  # goes round the bank once and a half
        a, b = pair(8, 8)
        mine, other = ours(a, b), theirs(a, b)
        torch.testing.assert_close(mine, other)
        grads = torch.autograd.grad(mine, (a, b))
        for value, truth in zip(grads, torch.autograd.grad(other, (a, b)), strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
    with torch.no_grad():  # evaluation leaves the bank as it is
        before = ours.memory_bank.bank.clone()
        ours(a.detach(), b.detach())
        assert torch.equal(before, ours.memory_bank.bank)


def test_no_memory_bank_and_sizes_that_lightly_refuses_too() -> None:
    a, b = pair(5, 8)
    for size in (0, (0,), (0, 8)):
        torch.testing.assert_close(NTXentLoss(0.1, size)(a, b), lightly.NTXentLoss(0.1, size)(a, b))
    for library in (NTXentLoss, lightly.NTXentLoss):  # the dimension cannot be guessed
        with pytest.raises(ValueError, match="dimension"):
            library(0.1, memory_bank_size=16)


def test_memory_bank_is_saved_and_wraps() -> None:
    loss = NTXentLoss(0.1, memory_bank_size=(10, 4))
    a, b = pair(4, 4)
    for _ in range(3):
        loss(a, b)
    restored = NTXentLoss(0.1, memory_bank_size=(10, 4))
    restored.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert restored.memory_bank is not None
    assert restored.memory_bank.bank_ptr.item() == 2
    assert torch.equal(restored(a, b), loss(a, b))
    keys = F.normalize(b.detach(), dim=1)
    torch.testing.assert_close(restored.memory_bank.bank[2:6], keys)
    restored.memory_bank.enqueue(torch.ones(25, 4))  # more than it holds
    assert torch.equal(restored.memory_bank.bank, torch.ones(10, 4))


@given(
    n=st.integers(1, 60),
    d=st.integers(2, 40),
    temperature=st.sampled_from([1.0, 0.2, 0.01, -0.5]),
    spread=st.sampled_from([1e-4, 1e-2, 1.0]),
    backend=st.sampled_from(["auto", "tiled", "reference"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_error_no_larger_than_eagers(n, d, temperature, spread, backend, seed) -> None:
    """float32, with per-row upstream gradients, pairs from random to nearly converged."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator)
    b = a + spread * torch.randn(n, d, generator=generator)
    upstream = torch.randn(2 * n, generator=generator)
    results = {}
    for kind, function, dtype in (
        ("truth", eager, torch.float64),
        ("eager", eager, torch.float32),
        ("ours", lambda x, y, t: ntxent(x, y, t, reduction="none"), torch.float32),
    ):
        x, y = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        t = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        with sslfast.use_backend(backend):
            loss = function(x, y, t)
            grads = torch.autograd.grad(loss, (x, y, t), upstream.to(dtype))
        results[kind] = [loss.detach().double(), *(g.double() for g in grads)]
    # Where a gradient cancels to almost nothing, what is left is rounding of its terms: these are
    # as large as upstream / temperature / norm, and logits of size 1 / temperature are rounded.
    scale = max(1, 1 / abs(temperature))
    shortest = min(a.norm(dim=1).min().item(), b.norm(dim=1).min().item(), 1)
    terms = [1, scale / shortest, scale / shortest, scale**2]
    for truth, theirs, ours, term in zip(*results.values(), terms, strict=True):
        tolerance = 5e-4 * truth.norm() + 2e-7 * scale * term * upstream.norm()
        assert (ours - truth).norm() <= (theirs - truth).norm() + tolerance


def test_converged_pairs_keep_their_precision() -> None:
    """The loss of a converged pair is tiny; subtracting two large logits would lose it."""
    a = F.normalize(torch.eye(16) + 0.01 * torch.randn(16, 16), dim=1)
    truth = ntxent(a.double(), a.double(), 0.1, reduction="none")
    assert truth.max() < 0.01
    torch.testing.assert_close(
        ntxent(a, a, 0.1, reduction="none").double(), truth, rtol=1e-4, atol=0
    )


def test_invariances() -> None:
    a, b = (t.detach() for t in pair(50, 16, torch.float64))
    order = torch.randperm(50)
    loss = ntxent(a, b, 0.2, reduction="none")
    torch.testing.assert_close(ntxent(a[order], b[order], 0.2), loss.mean())
    torch.testing.assert_close(ntxent(b, a, 0.2, reduction="none"), loss.roll(50))
    torch.testing.assert_close(ntxent(3 * a, 0.1 * b, 0.2, reduction="none"), loss)
    torch.testing.assert_close(ntxent(a, b, 0.2, reduction="sum"), loss.sum())


def test_non_contiguous_and_mixed_gradients() -> None:
    a = torch.randn(16, 30).T[:, ::2].requires_grad_()
    b = torch.randn(30, 8)
    loss = NTXentLoss(0.2)(a, b)
    torch.testing.assert_close(loss, eager(a, b, 0.2).mean())
    loss.backward()
    assert a.grad is not None


def test_non_finite_embeddings_give_a_non_finite_loss() -> None:
    for poison in (math.nan, math.inf):
        a, b = (t.detach() for t in pair(300, 8))
        a[3, 2] = poison
        assert not NTXentLoss(0.1)(a, b).isfinite()


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, math.nan])
@pytest.mark.parametrize("loss", [NTXentLoss, InfoNCE, SupConLoss, DCLLoss])
def test_temperature_zero(loss: type[nn.Module], temperature: float) -> None:
    """One rule for all, when a loss is made."""
    with pytest.raises(ValueError, match=r"temperature must be (a finite number|at least 1e-8)"):
        loss(temperature)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (torch.randn(4, 8), torch.randn(5, 8), ValueError, r"same shape.*\[4, 8\] and \[5, 8\]"),
        (torch.randn(4, 8), torch.randn(4, 9), ValueError, "same shape"),
        (torch.randn(4, 8, 2), torch.randn(4, 8, 2), ValueError, r"must have shape \[N, D\]"),
        (torch.ones(4, 8).int(), torch.ones(4, 8).int(), TypeError, "floating-point"),
        (torch.empty(0, 8), torch.empty(0, 8), ValueError, "out0 is empty"),
        (torch.randn(4, 8), torch.randn(4, 8).double(), ValueError, "float32, but out1"),
        (torch.randn(4, 8), torch.empty(4, 8, device="meta"), ValueError, "out1 is on meta"),
        ([[1.0]], torch.randn(1, 1), TypeError, "must be a torch.Tensor, got"),
    ],
)
def test_bad_embeddings(a, b, error, message) -> None:
    for loss in (NTXentLoss(), NTXentLoss(memory_bank_size=(16, 8))):
        with pytest.raises(error, match=message):
            loss(a, b)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="memory_bank_size must be 0 or"):
        NTXentLoss(memory_bank_size=16)
    for size in ((16, 0), (0, -1), (-1, 8), (0, 8, 2), (), -1):
        with pytest.raises(ValueError, match="memory_bank_size must be 0 or"):
            NTXentLoss(memory_bank_size=size)
    with pytest.raises(ValueError, match="dimension 5, the memory bank 4"):
        NTXentLoss(memory_bank_size=(16, 4))(torch.randn(2, 5), torch.randn(2, 5))
    with pytest.raises(ValueError, match="reduction must be"):
        ntxent(torch.randn(2, 5), torch.randn(2, 5), reduction="average")
    with pytest.raises(ValueError, match="temperature must be one number"):
        ntxent(torch.randn(2, 5), torch.randn(2, 5), torch.ones(2))


def test_large_problem_in_linear_memory() -> None:
    """M = 65536 in less than 512 MB beside the inputs; the whole matrix would take 16 GB."""
    import resource

    n = 32768
    a, b = torch.randn(n, 16, requires_grad=True), torch.randn(n, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    NTXentLoss(0.1)(a, b).backward()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert grown < 1 << 19  # in KiB
