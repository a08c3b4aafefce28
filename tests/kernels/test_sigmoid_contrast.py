"""Every backend that runs here, against the float64 oracle: no worse than eager PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rounding import logit_error
from sslfast.kernels import registry
from sslfast.kernels.sigmoid_contrast import problem, reference
from sslfast.kernels.similarity_softmax import Pairing

TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
RUNNABLE = [b.name for b in registry.candidates("sigmoid_contrast") if b.unavailable() is None]


def backend_for(name: str, rows: Tensor, columns: Tensor, pairing: Pairing):
    backend = {b.name: b for b in registry.candidates("sigmoid_contrast")}[name]
    reason = backend.refusal(problem(rows, columns, pairing))
    if reason is not None:
        pytest.skip(f"{name} refuses: {reason}")
    return backend.module


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()


def embeddings(n: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1).to(dtype)


def check(
    name: str, x: Tensor, y: Tensor, scale: float, bias: float, pairing: Pairing, seed: int
) -> tuple[Tensor, ...]:
    """Compare with float64 on the same (rounded) inputs, beside eager in float32."""
    module = backend_for(name, x, y, pairing)
    s, b = torch.tensor(scale), torch.tensor(bias)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(x), generator=generator, dtype=torch.float64) / max(len(x), 1)
    wide = x.double(), y.double(), s.double(), b.double(), pairing
    truth = reference.gradients(*wide, weight, True)
    eager = reference.gradients(x, y, s, b, pairing, weight.float(), True)
    got = module.gradients(x, y, s, b, pairing, weight.float(), True)
    for value, exact, other in zip(got, truth, eager, strict=True):
        assert value.dtype == torch.float32
        assert value.shape == exact.shape
        assert relative(value, exact) <= relative(other, exact) + TOLERANCE[x.dtype]
    # Each term of a loss is positive, and known as well as its logit: so is the sum.
    known = logit_error(scale, x.shape[1], bias)
    for loss in (got[0], module.forward(x, y, s, b, pairing)):
        torch.testing.assert_close(loss.double(), truth[0], rtol=known, atol=1e-37)
    without = module.gradients(x, y, s, b, pairing, weight.float(), False)
    assert without[2].numel() == 0
    assert all(torch.equal(without[n], got[n]) for n in (0, 1, 3))
    return got


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("m", "n", "d", "pairing", "scale", "bias"),
    [
        (1, 1, 4, Pairing(1), 10.0, -10.0),
        (252, 507, 123, Pairing(252, 0, 0, 255), 10.0, -10.0),  # a rank's rows against all
        (507, 252, 33, Pairing(200, 37, 11, 52), -3.0, 2.0),
        (300, 300, 64, Pairing(300), 100.0, -20.0),
        (7, 9000, 8, Pairing(0), 10.0, -10.0),  # another rank's columns: no positives
    ],
)
def test_against_the_oracle(name, dtype, m, n, d, pairing, scale, bias, generator) -> None:
    x, y = embeddings(m, d, dtype, generator), embeddings(n, d, dtype, generator)
    check(name, x, y, scale, bias, pairing, 1)


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_shape(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    m, n = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    length = data.draw(st.integers(0, min(m, n)))
    pairing = Pairing(
        length,
        data.draw(st.integers(0, max(length - 1, 0))),
        data.draw(st.integers(0, m - length)),
        data.draw(st.integers(0, n - length)),
    )
    scale = data.draw(st.sampled_from([0.0, 0.5, 10.0, 100.0, -3.0]))
    bias = data.draw(st.sampled_from([-30.0, -10.0, 0.0, 5.0]))
    d = data.draw(st.integers(1, 40))
    x, y = (embeddings(k, d, torch.float32, generator) for k in (m, n))
    check(name, x, y, scale, bias, pairing, seed)


@pytest.mark.parametrize("name", RUNNABLE)
def test_converged_pairs_keep_relative_precision(name, generator) -> None:
    """Losses far below the resolution of 1: positives at t = 80, negatives at -100 to -140."""
    x = embeddings(130, 256, torch.float32, generator)
    x = F.normalize(x - x.mean(0), dim=1)
    loss, _, _, d_bias = check(name, x, x.clone(), 200.0, -120.0, Pairing(130), 2)
    assert (loss < 1e-10).all()
    assert (loss > 0).all()
    assert (d_bias != 0).all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_extreme_logits(name, generator) -> None:
    """Logits of thousands on both sides cost what they are, with gradients of 0 and 1."""
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [0.5]])
    loss, u, v, d_bias = check(name, x, y, 5000.0, 1.0, Pairing(2, 1), 3)
    assert all(t.isfinite().all() for t in (loss, u, v, d_bias))
    assert loss.min() > 9000


@pytest.mark.parametrize("name", RUNNABLE)
def test_empty(name) -> None:
    for m, n in ((0, 0), (0, 3), (3, 0)):
        loss, u, v, d_bias = check(
            name, torch.ones(m, 5), torch.ones(n, 5), 2.0, 0.0, Pairing(0), 4
        )
        assert (loss.shape, u.shape, v.shape, d_bias.shape) == ((m,), (m, 5), (n, 5), (m,))
        assert all((t == 0).all() for t in (loss, u, v, d_bias))


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_in_non_finite_out(name, poison, generator) -> None:
    x, y = (
        embeddings(300, 8, torch.float32, generator),
        embeddings(310, 8, torch.float32, generator),
    )
    x[17, 3] = poison
    module = backend_for(name, x, y, Pairing(300))
    given = x, y, torch.tensor(10.0), torch.tensor(-5.0), Pairing(300), torch.ones(300), True
    loss, u, v, _ = module.gradients(*given)
    others = torch.arange(300) != 17
    assert not loss[17].isfinite()
    assert loss[others].isfinite().all()
    assert u[others].isfinite().all()
    assert math.isinf(poison) or not u[17].isfinite().any()
    assert not v[:, 3].isfinite().any()


@pytest.mark.parametrize("name", RUNNABLE)
def test_bitwise_repeatable(name, generator) -> None:
    x, y = (embeddings(700, 32, torch.float32, generator) for _ in range(2))
    module = backend_for(name, x, y, Pairing(700))
    weight = torch.randn(700, generator=generator)
    given = x, y, torch.tensor(10.0), torch.tensor(-5.0), Pairing(700), weight, True
    first = module.gradients(*given)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, module.gradients(*given), strict=True))


def test_cpu_backend_gives_the_same_bits_with_any_number_of_threads(generator) -> None:
    x, y = (embeddings(1500, 16, torch.float32, generator) for _ in range(2))
    module = backend_for("cpu", x, y, Pairing(1500))
    weight, threads = torch.randn(1500, generator=generator), torch.get_num_threads()
    given = x, y, torch.tensor(10.0), torch.tensor(-5.0), Pairing(1500), weight, True
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(module.gradients(*given))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
