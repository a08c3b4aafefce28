"""The op as torch sees it, and the function over it against F.cross_entropy in float64."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sslfast
from sslfast.functional import linear_cross_entropy
from sslfast.kernels.linear_cross_entropy.op import linear_cross_entropy as rows_op
from sslfast.kernels.linear_cross_entropy.op import weighted_linear_cross_entropy as sum_op
from sslfast.losses import LinearCrossEntropyLoss

IGNORED = -100


def inputs(
    n: int, v: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias and targets, every third of which is ignored."""
    generator = torch.Generator().manual_seed(seed)
    x, w, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((n, d), (v, d), (v,))
    )
    targets = torch.randint(v, (n,), generator=generator)
    targets[2::3] = IGNORED
    return x, w, b, targets


def plain(
    x: Tensor,
    w: Tensor,
    t: Tensor,
    b: Tensor | None,
    reduction: str,
    smoothing: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    logits = capped(F.linear(x, w, b), softcap)
    return F.cross_entropy(
        logits, t, ignore_index=IGNORED, reduction=reduction, label_smoothing=smoothing
    )


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def same(ours: Tensor, truth: Tensor, *leaves: Tensor, **tolerance: float) -> None:
    """Values and gradients, from a random gradient above."""
    torch.testing.assert_close(ours, truth.to(ours.dtype), **tolerance)
    above = torch.randn_like(truth)
    pairs = zip(
        torch.autograd.grad(ours, leaves, above.to(ours.dtype)),
        torch.autograd.grad(truth, leaves, above),
        strict=True,
    )
    for value, expected in pairs:
        torch.testing.assert_close(value, expected, **tolerance)


@given(
    n=st.integers(1, 40),
    v=st.integers(1, 300),
    d=st.integers(1, 33),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_equals_cross_entropy_in_float64(
    n: int, v: int, d: int, reduction: str, smoothing: float, with_bias: bool, seed: int
) -> None:
    x, w, b, t = inputs(n, v, d, seed=seed)
    bias = b if with_bias else None
    leaves = (x, w, b) if with_bias else (x, w)
    ours = linear_cross_entropy(x, w, t, bias, IGNORED, reduction, label_smoothing=smoothing)
    same(ours, plain(x, w, t, bias, reduction, smoothing), *leaves)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_float32_of_several_blocks(reduction: str, smoothing: float) -> None:
    x, w, b, t = inputs(1300, 900, 20, torch.float32)
    ours = linear_cross_entropy(x, w, t, b, IGNORED, reduction, label_smoothing=smoothing)
    truth = plain(*(y.double() for y in (x, w)), t, b.double(), reduction, smoothing)
    same(ours, truth, x, w, b, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
@pytest.mark.parametrize(("smoothing", "softcap"), [(0.0, None), (0.2, None), (0.0, 2.0)])
def test_gradcheck(backend: str, smoothing: float, softcap: float | None) -> None:
    x, w, b, t = inputs(7, 5, 3)
    weight = torch.rand(7, dtype=torch.float64)
    options = IGNORED, smoothing
    with sslfast.use_backend(backend):
        torch.autograd.gradcheck(
            lambda *a: rows_op(*a, t, *options, softcap), (x, w, b), check_undefined_grad=False
        )
        torch.autograd.gradcheck(
            lambda *a: sum_op(*a, t, weight, *options, True, True, True, softcap)[0], (x, w, b)
        )


@given(
    reduction=st.sampled_from(["mean", "sum", "none"]),
    shift=st.sampled_from([False, True, 3]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    with_bias=st.booleans(),
    return_lse=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20, deadline=None)
def test_the_arguments_of_cut_cross_entropy(
    reduction: str, shift: int, softcap: float | None, with_bias: bool, return_lse: bool, seed: int
) -> None:
    """In their order, on sequences of which ignored targets are a part; lse has a gradient too."""
    x, w, b, t = inputs(24, 17, 5, seed=seed)
    x, t, bias = (
        x.detach().view(2, 2, 6, 5).requires_grad_(),
        t.view(2, 2, 6),
        b if with_bias else None,
    )
    leaves = (x, w, b) if with_bias else (x, w)
    cce = {"impl": "cce_kahan_full_c", "filter_eps": None, "vocab_parallel_options": None}
    ours = linear_cross_entropy(
        x, w, t, bias, IGNORED, softcap, reduction, shift, return_lse, **cce
    )
    e, y = x[..., : 6 - shift, :], t[..., int(shift) :]
    truth = plain(e.flatten(0, -2), w, y.flatten(), bias, reduction, 0.0, softcap)
    truth = truth.view(y.shape) if reduction == "none" else truth
    if return_lse:
        whole = capped(F.linear(e, w, bias), softcap).logsumexp(-1).where(y != IGNORED, 0)
        assert ours[1].shape == y.shape
        torch.testing.assert_close(ours[1], whole)
        ours, truth = (loss.sum() + lse.square().mean() for loss, lse in (ours, (truth, whole)))
    same(ours, truth, *leaves)


def test_the_reduction_in_its_former_place() -> None:
    x, w, _, t = inputs(9, 5, 3)
    rows = linear_cross_entropy(x, w, t, reduction="none")
    assert torch.equal(linear_cross_entropy(x, w, t, None, IGNORED, "none"), rows)
    assert torch.equal(LinearCrossEntropyLoss(IGNORED, "none")(x, w, t), rows)
    with pytest.raises(TypeError, match="given twice, as 'none' and 'sum'"):
        LinearCrossEntropyLoss(IGNORED, "none", "sum")
    with pytest.raises(TypeError, match=r"reduction must be text, got 0\.1"):
        LinearCrossEntropyLoss(IGNORED, "none", 0.1)


def test_module_of_cut_cross_entropy() -> None:
    x, w, b, t = inputs(12, 5, 3)
    x, t = x.view(3, 4, 3), t.view(3, 4)
    options = {"softcap": 3.0, "reduction": "sum", "shift": 1}
    loss, lse = LinearCrossEntropyLoss(**options, return_lse=True, impl="cce")(x, w, t, b)
    expected = linear_cross_entropy(x, w, t, b, **options, return_lse=True)
    assert torch.equal(loss, expected[0])
    assert torch.equal(lse, expected[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, w, b, t = inputs(7, 5, 3, dtype)
    weight = torch.rand(7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(rows_op, (x, w, b, t, IGNORED, 0.1))
    torch.library.opcheck(rows_op, (x, w, b, t, IGNORED, 0.0, 2.0))
    # AOT dispatch differentiates all outputs; the gradients among these have none of their own.
    torch.library.opcheck(
        sum_op, (x, w, b, t, weight, IGNORED, 0.1, True, True, True), test_utils=checks
    )
    torch.library.opcheck(
        sum_op, (x, w, None, t, weight, IGNORED, 0.0, True, False, False, 2.0), test_utils=checks
    )


def test_compile_fullgraph() -> None:
    x, w, b, t = inputs(20, 8, 4, torch.float32)
    for reduction, options in (("mean", {}), ("none", {"softcap": 3.0, "shift": 1})):

        def loss(x: Tensor, w: Tensor, b: Tensor, r: str = reduction, o: Any = options) -> Tensor:
            return linear_cross_entropy(x, w, t, b, reduction=r, **o).square().sum()

        expected = torch.autograd.grad(loss(x, w, b), (x, w, b))
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, w, b), (x, w, b))
        for value, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(value, truth)


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, w, b, t = inputs(9, 5, 3)
    linear_cross_entropy(x, w.detach(), t, b).backward()
    assert x.grad is not None
    assert w.grad is None
    assert b.grad is not None
    with torch.no_grad():
        assert linear_cross_entropy(x, w, t).grad_fn is None


def test_gradients_of_a_frozen_encoder_and_twice() -> None:
    x, w, _, t = inputs(9, 5, 3)
    loss = linear_cross_entropy(x.detach(), w, t)
    (first,) = torch.autograd.grad(3 * loss, w, retain_graph=True)
    (second,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(first, 3 * second)


def test_double_backward_says_what_to_do() -> None:
    x, w, _, t = inputs(9, 5, 3)
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(x, w, t, reduction=reduction).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            first.sum().backward()


def test_checkpointing_and_sequences() -> None:
    x, w, b, t = inputs(12, 5, 3)
    ours = checkpoint(
        linear_cross_entropy, x.view(3, 4, 3), w, t.view(3, 4), b, use_reentrant=False
    )
    same(ours, plain(x, w, t, b, "mean", 0.0), x, w, b)
    rows = linear_cross_entropy(x.view(3, 4, 3), w, t.view(3, 4), b, reduction="none")
    assert rows.shape == (3, 4)
    assert torch.equal(rows == 0, t.view(3, 4) == IGNORED)


def test_autocast_takes_float32_weights() -> None:
    """As F.linear does; the gradient of float32 weights is not rounded to half precision."""
    x, w, b, t = inputs(12, 50, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, t, b)
    assert loss.dtype == torch.float32
    loss.backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
    assert not torch.equal(w.grad, w.grad.bfloat16().float())
    truth = plain(*(y.bfloat16().double() for y in (x, w)), t, b.bfloat16().double(), "mean", 0.0)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)


def test_half_precision_gradients_are_scaled_before_they_are_rounded() -> None:
    """What a gradient scaler is for: 1e-8 is nothing in float16, 1e-8 times 2^16 is something."""
    x, w, _, t = inputs(4, 6, 3, torch.float16)
    (1e-6 * 2**16 * linear_cross_entropy(x * 1e-2, w, t)).backward()
    assert w.grad is not None
    assert w.grad.count_nonzero() > 12


def test_a_sure_model_has_a_precise_loss() -> None:
    """softplus of a difference: the loss is not the difference of two large numbers."""
    x = torch.tensor([[40.0, 0.0]], requires_grad=True)
    w = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    loss = linear_cross_entropy(x, w, torch.tensor([0]))
    torch.testing.assert_close(loss.item(), torch.tensor(-20.0).exp().item(), rtol=1e-5, atol=0)
    loss.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 1].item(), loss.item(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_ignored_and_no_rows_as_in_torch(reduction: str) -> None:
    x, w, _, t = inputs(5, 4, 3)
    t[:] = IGNORED
    for rows in (5, 0):
        ours = linear_cross_entropy(x[:rows], w, t[:rows], reduction=reduction)
        truth = plain(x[:rows], w, t[:rows], None, reduction, 0.0)
        torch.testing.assert_close(ours, truth, equal_nan=True)
    (gradient,) = torch.autograd.grad(
        linear_cross_entropy(x, w, t, reduction=reduction).sum(), w, allow_unused=True
    )
    assert gradient is not None
    assert gradient.nan_to_num().abs().max() == 0


def test_module_is_a_replacement_for_cross_entropy_loss() -> None:
    head = nn.Linear(6, 11).double()
    other = copy.deepcopy(head)
    x, _, _, t = inputs(9, 11, 6)
    LinearCrossEntropyLoss(label_smoothing=0.1)(x, head.weight, t, head.bias).backward()
    nn.CrossEntropyLoss(label_smoothing=0.1)(other(x), t).backward()
    for ours, theirs in zip(head.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_bad_arguments() -> None:
    x, w, b, t = inputs(6, 5, 3)
    with pytest.raises(IndexError, match="target 5 is out of bounds: there are 5 classes"):
        linear_cross_entropy(x, w, t.clone().fill_(5))
    with pytest.raises(IndexError, match="target -1 is out of bounds"):
        linear_cross_entropy(x, w, t.clone().fill_(-1), reduction="none")
    with pytest.raises(TypeError, match=r"targets must be int64 classes, got torch\.int32"):
        linear_cross_entropy(x, w, t.int())
    with pytest.raises(
        TypeError, match=r"weight must be a floating-point tensor, got torch\.int64"
    ):
        linear_cross_entropy(x, w.long(), t)
    with pytest.raises(TypeError, match=r"hidden must be a torch\.Tensor"):
        linear_cross_entropy([1.0], w, t)
    with pytest.raises(ValueError, match=r"same D, got \[6, 3\] and \[5, 2\]"):
        linear_cross_entropy(x, w[:, :2], t)
    with pytest.raises(ValueError, match=r"targets must have the shape .* \[6\], got \[5\]"):
        linear_cross_entropy(x, w, t[:5])
    with pytest.raises(ValueError, match=r"bias must have shape \[5\], got \[4\]"):
        linear_cross_entropy(x, w, t, b[:4])
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\], got 1\.5"):
        linear_cross_entropy(x, w, t, label_smoothing=1.5)
    with pytest.raises(ValueError, match="reduction must be"):
        linear_cross_entropy(x, w, t, reduction="average")
    with pytest.raises(ValueError, match="weight is empty"):
        linear_cross_entropy(x, w[:0], t)
    for softcap in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"softcap must be a (positive|finite) number"):
            linear_cross_entropy(x, w, t, softcap=softcap)
    for options in ({"softcap": 1.0}, {"return_lse": True}):
        with pytest.raises(ValueError, match="label_smoothing goes with neither"):
            linear_cross_entropy(x, w, t, label_smoothing=0.1, **options)
    for shift in (-1, 6):
        with pytest.raises(ValueError, match=rf"shift must lie in \[0, 6\).*, got {shift}"):
            linear_cross_entropy(x, w, t, shift=shift)
    with pytest.raises(ValueError, match="vocab_parallel_options is not supported"):
        linear_cross_entropy(x, w, t, vocab_parallel_options=object())
    with pytest.raises(TypeError, match="unexpected keyword argument 'soft_cap'"):
        LinearCrossEntropyLoss(soft_cap=1.0)
