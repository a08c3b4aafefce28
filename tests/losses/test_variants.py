"""Decoupled, debiased and smoothed losses against their definitions on the whole matrix."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast.functional import clip, info_nce, ntxent
from sslfast.kernels import similarity_softmax as kernels

VARIANTS = [
    {"decoupled": True},
    {"debiased": 0.1},
    {"debiased": 0.6},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {},
]


def plain(
    logits: Tensor,
    target: Tensor,
    scale: Tensor,
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Losses of rows of logits [M, C], -inf where there is no candidate."""
    chosen = F.one_hot(target, logits.shape[1]).bool()
    positive = logits[chosen]
    negatives = logits.masked_fill(chosen, -torch.inf)
    if decoupled:
        return negatives.logsumexp(1) - positive
    if debiased:
        n = negatives.isfinite().sum(1)
        estimate = (negatives.exp().sum(1) / n - debiased * positive.exp()) / (1 - debiased)
        total = n * torch.maximum(estimate, torch.exp(-scale.abs()))
        return -torch.log(positive.exp() / (positive.exp() + total))
    candidates = logits.isfinite()
    count = int(candidates[0].sum())
    rank = candidates.cumsum(1).gather(1, target[:, None])[:, 0] - 1
    packed = logits[candidates].view(-1, count)
    return F.cross_entropy(packed, rank, reduction="none", label_smoothing=label_smoothing)


def plain_ntxent(a: Tensor, b: Tensor, scale: Tensor, **variant: float) -> Tensor:
    z = F.normalize(torch.cat((a, b)), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = (scale * z @ z.T).masked_fill(itself, -torch.inf)
    return plain(logits, torch.arange(len(z)).roll(len(a)), scale, **variant)


def plain_info_nce(
    q: Tensor, k: Tensor, scale: Tensor, negatives: Tensor | None = None, **variant: float
) -> Tensor:
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    if negatives is None:
        return plain(scale * q @ k.T, torch.arange(len(q)), scale, **variant)
    negatives = F.normalize(negatives, dim=-1)
    logits = torch.einsum("nd,nkd->nk" if negatives.dim() == 3 else "nd,kd->nk", q, negatives)
    logits = scale * torch.cat(((q * k).sum(1, keepdim=True), logits), 1)
    return plain(logits, torch.zeros(len(q), dtype=torch.int64), scale, **variant)


def plain_clip(image: Tensor, text: Tensor, scale: Tensor, **variant: float) -> Tensor:
    logits, target = scale * image @ text.T, torch.arange(len(image))
    return (plain(logits, target, scale, **variant) + plain(logits.T, target, scale, **variant)) / 2


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(ours: Callable[..., Tensor], truth: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Equal losses per row, and gradients of all inputs for an upstream gradient per row."""
    value, expected = ours(*inputs), truth(*inputs)
    torch.testing.assert_close(value, expected)
    weight = torch.randn_like(expected)
    gradients = zip(
        torch.autograd.grad(value, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    )
    for gradient, theirs in gradients:
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("tau", [0.5, 0.07])
def test_equal_to_their_definitions(variant: dict[str, float], tau: float) -> None:
    scale = torch.tensor(1 / tau, dtype=torch.float64, requires_grad=True)
    a, b = leaf(13, 6), leaf(13, 6)
    unit = [F.normalize(x, dim=1).detach().requires_grad_() for x in (a, b)]

    def ours(loss: Callable[..., Tensor], **options: str) -> Callable[..., Tensor]:
        def call(a: Tensor, b: Tensor, s: Tensor, *negatives: Tensor) -> Tensor:
            return loss(a, b, *negatives, temperature=1 / s, reduction="none", **options, **variant)

        return call

    same(ours(ntxent), partial(plain_ntxent, **variant), [a, b, scale])
    same(partial(clip, reduction="none", **variant), partial(plain_clip, **variant), [*unit, scale])
    given_keys = partial(plain_info_nce, **variant)
    same(ours(info_nce), given_keys, [a, b, scale])
    same(ours(info_nce), given_keys, [a, b, scale, leaf(21, 6)])
    same(ours(info_nce, negative_mode="paired"), given_keys, [a, b, scale, leaf(13, 4, 6)])


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(1, 9),
    tau=st.sampled_from([0.03, 0.1, 1.0, -0.2]),
    tau_plus=st.floats(0.001, 0.99),
    spread=st.sampled_from([0.01, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_debiased_at_every_spread(n, d, tau, tau_plus, spread, seed) -> None:
    """From pairs that have converged (rows at the floor) to random ones (rows above it)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = a + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    inputs = [a.requires_grad_(), b.requires_grad_()]
    scale = torch.tensor(1 / tau, dtype=torch.float64)
    same(
        partial(ntxent, temperature=tau, reduction="none", debiased=tau_plus),
        partial(plain_ntxent, scale=scale, debiased=tau_plus),
        inputs,
    )


def test_debiased_is_exact_where_exponentials_overflow() -> None:
    """At tau = 0.001 e^(1/tau) is inf even in float64: all pairs apart, then all pairs equal."""
    a, b = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64).roll(2, 0)
    apart = ntxent(a, -b, 0.001, debiased=0.1, reduction="none")
    # <z_i, z_p> = 0; of the 6 negatives one is -1 (or 1), four are 0 and one is 0.
    z = torch.cat((a, -b))
    logits = 1000 * z @ z.T
    positive = logits.diagonal(4).repeat(2)
    keep = ~torch.eye(8, dtype=torch.bool) & ~torch.eye(8, dtype=torch.bool).roll(4, 0)
    expected = []
    for row, p in zip(logits.masked_fill(~keep, -torch.inf), positive, strict=True):
        top = max(row.max(), p)  # a shift makes the largest term 1
        rest = (row - top).exp().sum() - 0.1 * 6 * (p - top).exp()
        floor = math.log(6) - 1000
        estimate = rest.log() + top - math.log(0.9) if rest > 0 else torch.tensor(-torch.inf)
        expected.append(F.softplus(estimate.clamp_min(floor) - p, threshold=40))
    torch.testing.assert_close(apart, torch.stack(expected).double())
    together = ntxent(a, a, 0.001, debiased=0.1, reduction="none")
    torch.testing.assert_close(together, torch.zeros_like(together))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float64(variant: dict[str, float], dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 60, 16).to(dtype).unbind()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for loss, inputs in (
        (ntxent, (a, b, 0.2)),
        (info_nce, (a, b, None, 0.2)),
        (info_nce, (a, b, torch.randn(90, 16).to(dtype), 0.2)),
    ):
        truth = loss(*(x.double() if isinstance(x, Tensor) else x for x in inputs), **variant)
        value = loss(*inputs, **variant)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_autocast_does_not_reach_them(variant: dict[str, float]) -> None:
    a, b = torch.randn(2, 30, 16).unbind()
    own = torch.randn(30, 5, 16)
    with sslfast.use_backend("tiled"):
        for loss in (
            partial(ntxent, a, b, 0.05, **variant),
            partial(clip, F.normalize(a, dim=1), F.normalize(b, dim=1), 20.0, **variant),
            partial(info_nce, a, b, own, 0.05, negative_mode="paired", **variant),
        ):
            expected = loss()
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(loss(), expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_non_finite_embeddings_give_a_non_finite_loss(variant: dict[str, float]) -> None:
    a, b = torch.randn(2, 30, 16).unbind()
    a[3, 2] = math.nan
    for loss in (ntxent, clip, info_nce):
        arguments = (2.0,) if loss is clip else ()
        assert not loss(a, b, *arguments, **variant).isfinite()


def test_memory_stays_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that any variant makes has N^2 elements, but for what may be kept in any case."""
    monkeypatch.setattr(kernels, "KEPT_FLOATS", 0)
    from torch.utils._python_dispatch import TorchDispatchMode

    n, d, largest = 300, 4, 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    a, b = torch.randn(n, d, requires_grad=True), torch.randn(n, d, requires_grad=True)
    for variant in VARIANTS:
        with Sizes():
            sum((ntxent(a, b, **variant), clip(a, b, 2.0, **variant))).backward()
    assert 2 * n * d <= largest < n * n


def test_bad_options() -> None:
    x = torch.randn(4, 3)
    for loss in (partial(ntxent, x, x), partial(info_nce, x, x), partial(clip, x, x, 1.0)):
        for value in (-0.1, 1.0, math.nan):
            with pytest.raises(
                ValueError, match=r"debiased must be a (probability below 1|finite number)"
            ):
                loss(debiased=value)
        for value in (-0.1, 1.1, math.nan):
            with pytest.raises(
                ValueError, match=r"label_smoothing must be (in \[0, 1\]|a finite number)"
            ):
                loss(label_smoothing=value)
        with pytest.raises(ValueError, match="decoupled and label_smoothing cannot be combined"):
            loss(decoupled=True, label_smoothing=0.1)
        with pytest.raises(ValueError, match="decoupled and debiased cannot be combined"):
            loss(decoupled=True, debiased=0.1)
    one = x[:1]
    for loss in (
        partial(ntxent, one, one),
        partial(info_nce, one, one),
        partial(clip, one, one, 1),
    ):
        with pytest.raises(ValueError, match="needs at least one negative"):
            loss(decoupled=True)
        with pytest.raises(ValueError, match="needs at least one negative"):
            loss(debiased=0.1)
        torch.testing.assert_close(loss(label_smoothing=0.1), torch.tensor(0.0))
