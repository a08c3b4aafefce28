"""Every backend that runs here, against the float64 oracle: no worse than eager PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.linear_cross_entropy import Wants, problem, reference, tiled

TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
RUNNABLE = [b.name for b in registry.candidates("linear_cross_entropy") if b.unavailable() is None]
ALL = Wants(hidden=True, weight=True, bias=True)


def backend_for(name: str, hidden: Tensor, weight: Tensor):
    backend = {b.name: b for b in registry.candidates("linear_cross_entropy")}[name]
    reason = backend.refusal(problem(hidden, weight))
    if reason is not None:
        pytest.skip(f"{name} refuses: {reason}")
    return backend.module


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()


Layer = tuple[Tensor, Tensor, Tensor | None, Tensor]


def layer(
    n: int, v: int, d: int, dtype: torch.dtype, generator: torch.Generator, spread: float = 1.0
) -> Layer:
    """Hidden rows, weights, bias and targets with logits of standard deviation ``spread``."""
    x = spread * torch.randn(n, d, generator=generator)
    w = torch.randn(v, d, generator=generator) / math.sqrt(d)
    b = torch.randn(v, generator=generator)
    return x.to(dtype), w.to(dtype), b.to(dtype), torch.randint(v, (n,), generator=generator)


def double(x: Tensor, w: Tensor, b: Tensor | None, targets: Tensor) -> Layer:
    return x.double(), w.double(), None if b is None else b.double(), targets


def check(
    name: str, given: Layer, smoothing: float, seed: int, softcap: float | None = None
) -> tuple[Tensor, ...]:
    """Compare with float64 on the same (rounded) inputs, beside eager in float32."""
    x, w, _, _ = given
    module = backend_for(name, x, w)
    generator = torch.Generator().manual_seed(seed)
    row_weight = torch.randn(len(x), generator=generator, dtype=torch.float64) / max(len(x), 1)
    options = smoothing, ALL, softcap
    truth = reference.gradients(*double(*given), row_weight, *options)
    eager = reference.gradients(*given, row_weight.float(), *options)
    got = module.gradients(*given, row_weight.float(), *options)
    for value, exact, other in zip(got[2:], truth[2:], eager[2:], strict=True):
        assert value.dtype == torch.float32
        assert value.shape == exact.shape
        assert relative(value, exact) <= relative(other, exact) + TOLERANCE[x.dtype]
    logits = reference._logits(*double(*given)[:3])
    known = 2e-6 * (1 + logits.abs().amax().item() if logits.numel() else 1)
    for statistics in (got[:2], module.forward(*given, softcap)):
        for value, exact in zip(statistics, truth[:2], strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), exact, rtol=0, atol=known)
    return got


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "v", "d", "biased", "smoothing"),
    [
        (1, 2, 1, True, 0.0),
        (252, 507, 123, False, 0.0),
        (530, 1100, 32, True, 0.1),
        (5, 9001, 17, True, 0.0),
        (600, 3, 8, False, 0.1),
    ],
)
def test_against_the_oracle(name, dtype, n, v, d, biased, smoothing, generator) -> None:
    x, w, b, targets = layer(n, v, d, dtype, generator)
    check(name, (x, w, b if biased else None, targets), smoothing, 1)


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_shape(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    n, v, d = (data.draw(st.integers(1, most)) for most in (90, 300, 40))
    spread = data.draw(st.sampled_from([0.0, 1.0, 30.0]))
    x, w, b, targets = layer(n, v, d, torch.float32, generator, spread)
    bias = b if data.draw(st.booleans()) else None
    softcap = data.draw(st.sampled_from([None, 2.0, 30.0]))
    check(name, (x, w, bias, targets), data.draw(st.sampled_from([0.0, 0.2])), seed, softcap)


@pytest.mark.parametrize("name", RUNNABLE)
def test_several_blocks_of_rows(name, generator, monkeypatch) -> None:
    """Gradients of the weights add up over blocks."""
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", 40_000)
    check(name, layer(1100, 600, 16, torch.float32, generator), 0.0, 2)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("softcap", [1e-3, 1.5, 30.0, 1e4])
def test_a_softcap_of_any_size(name, softcap, generator, monkeypatch) -> None:
    """From logits that are all at the cap to some that it leaves as they are, in several blocks."""
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", 40_000)
    given = layer(300, 270, 16, torch.float32, generator, spread=3.0)
    logits = reference._logits(*double(*given)[:3])
    check(name, given, 0.1, 2, softcap)
    lse, target_logit = backend_for(name, *given[:2]).forward(*given, softcap)
    capped = softcap * (logits / softcap).tanh()
    whole = torch.logaddexp(lse, target_logit).double()
    torch.testing.assert_close(whole, capped.logsumexp(1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_sure_rows_keep_relative_precision(name, generator) -> None:
    """Losses far below the resolution of 1, and their gradients, where the model is sure."""
    x, w, _, targets = layer(60, 50, 64, torch.float32, generator)
    x = 0.1 * x + 5 * w[targets] / w[targets].norm(dim=1, keepdim=True) ** 2 * 8
    given = x, w, None, targets
    lse, target_logit, d_hidden, *_ = check(name, given, 0.0, 3)
    exact = reference.forward(*double(*given))
    loss, truth = F.softplus(lse - target_logit), F.softplus(exact[0] - exact[1])
    assert truth.max() < 1e-6
    torch.testing.assert_close(loss.double(), truth, rtol=1e-3, atol=0)
    assert (d_hidden.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_extreme_logits(name, generator) -> None:
    x, w, b, targets = layer(40, 70, 8, torch.float32, generator, spread=1000.0)
    assert all(t.isfinite().all() for t in check(name, (x, w, b, targets), 0.0, 4))


@pytest.mark.parametrize("name", RUNNABLE)
def test_tiny_weights_lose_nothing_in_half_precision(name, generator) -> None:
    """Weights of the order of 1 / N times small probabilities are below the range of fp16."""
    x, w, b, targets = layer(64, 2000, 16, torch.float16, generator)
    module = backend_for(name, x, w)
    row_weight = torch.rand(64, generator=generator) + 0.5

    def run(size: float) -> tuple[Tensor, ...]:
        return module.gradients(x, w, b, targets, size * row_weight, 0.0, ALL)[2:]

    for small, one in zip(run(2.0**-30), run(1.0), strict=True):
        torch.testing.assert_close(small * 2.0**30, one, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", RUNNABLE)
def test_only_what_is_wanted(name, generator) -> None:
    x, w, b, targets = layer(70, 90, 8, torch.float32, generator)
    module, row_weight = backend_for(name, x, w), torch.ones(70)
    everything = module.gradients(x, w, b, targets, row_weight, 0.0, ALL)
    for n in range(3):
        wants = Wants(*(k == n for k in range(3)))
        some = module.gradients(x, w, b, targets, row_weight, 0.0, wants)
        for k in range(3):
            if k == n:
                torch.testing.assert_close(some[2 + k], everything[2 + k])
            else:
                assert some[2 + k].numel() == 0


@pytest.mark.parametrize("name", RUNNABLE)
def test_no_rows_and_a_single_class(name, generator) -> None:
    x, w, b, targets = layer(0, 7, 5, torch.float32, generator)
    assert all((t == 0).all() for t in check(name, (x, w, b, targets), 0.0, 5))
    lse, _, *gradients = check(name, layer(9, 1, 5, torch.float32, generator), 0.0, 6)
    assert lse.isneginf().all()
    assert all((t == 0).all() for t in gradients)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_in_non_finite_out(name, poison, generator) -> None:
    x, w, b, targets = layer(300, 500, 8, torch.float32, generator)
    x[17, 3] = poison
    module = backend_for(name, x, w)
    lse, target_logit, d_hidden, d_weight, _ = module.gradients(
        x, w, b, targets, torch.ones(300), 0.0, ALL
    )
    others = torch.arange(300) != 17
    assert not (lse[17].isfinite() and target_logit[17].isfinite())
    assert lse[others].isfinite().all()
    assert d_hidden[others].isfinite().all()
    assert not d_hidden[17].isfinite().any()
    assert not d_weight.isfinite().all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_bitwise_repeatable(name, generator) -> None:
    given = layer(700, 900, 32, torch.float32, generator)
    module, row_weight = backend_for(name, *given[:2]), torch.randn(700, generator=generator)
    first = module.gradients(*given, row_weight, 0.1, ALL)
    for _ in range(3):
        again = module.gradients(*given, row_weight, 0.1, ALL)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_cpu_backend_gives_the_same_bits_with_any_number_of_threads(generator) -> None:
    given = layer(1300, 1700, 16, torch.float32, generator)
    module, row_weight = backend_for("cpu", *given[:2]), torch.randn(1300, generator=generator)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(module.gradients(*given, row_weight, 0.0, ALL))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(("n", "v", "d"), [(3, 700, 9), (600, 300, 20)])
def test_targets_that_are_no_class(name, n, v, d, generator) -> None:
    """The keys of MoCo's queries are not in its queue: their logits are given."""
    x, w, _, _ = layer(n, v, d, torch.float32, generator)
    given = torch.randn(n, generator=generator) + 8
    row_weight = torch.randn(n, generator=generator)
    module = backend_for(name, x, w)
    got = module.gradients(x, w, None, given, row_weight, 0.0, ALL)
    want = reference.gradients(
        x.double(), w.double(), None, given.double(), row_weight.double(), 0.0, ALL
    )
    for value, truth in zip(got, want, strict=True):
        assert relative(value, truth) < 1e-5
    lse, target_logit = module.forward(x, w, None, given)
    assert relative(lse, want[0]) < 1e-5
    assert torch.equal(target_logit, given)
