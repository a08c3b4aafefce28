"""Every backend that runs here, against the float64 oracle: no worse than eager PyTorch."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslfast.kernels import registry
from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.similarity_softmax import Pairing, problem, reference

TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
RUNNABLE = [b.name for b in registry.candidates("similarity_softmax") if b.unavailable() is None]


def backend_for(name: str, rows: Tensor, columns: Tensor | None, pairing: Pairing):
    backend = {b.name: b for b in registry.candidates("similarity_softmax")}[name]
    reason = backend.refusal(problem(rows, columns, pairing))
    if reason is not None:
        pytest.skip(f"{name} refuses: {reason}")
    return backend.module


def relative(value: Tensor, truth: Tensor) -> float:
    scale = truth.norm().clamp_min(1e-30)
    return ((value.double() - truth).norm() / scale).item()


def check(name: str, x: Tensor, y: Tensor | None, scale: float, pairing: Pairing, seed: int):
    """Compare with float64 on the same (rounded) inputs, beside eager in the inputs' dtype."""
    module = backend_for(name, x, y, pairing)
    x64, y64 = x.double(), None if y is None else y.double()
    s32, s64 = torch.tensor(scale), torch.tensor(scale, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(len(x), generator=generator, dtype=torch.float64)
    h = torch.randn(len(x if y is None else y), generator=generator, dtype=torch.float64)

    lse64, positive64, columns64 = reference.forward(x64, y64, s64, pairing, True)
    lse, positive, columns = module.forward(x, y, s32, pairing, True)
    assert lse.dtype == positive.dtype == columns.dtype == statistics_dtype(x)
    tolerance = TOLERANCE[x.dtype]
    span = max(abs(scale), 1.0)
    for value, truth in ((lse, lse64), (positive, positive64), (columns, columns64)):
        finite = truth.isfinite()
        assert torch.equal(value.double()[~finite], truth[~finite])  # -inf where nothing is
        error = (value.double() - truth)[finite].abs().max().item() if finite.any() else 0.0
        assert error <= 1e-6 * span + tolerance / 100

    row64 = (lse64, g)
    column64 = row64 if y is None else (columns64, h)
    truth = reference.backward(x64, y64, s64, pairing, row64, column64)
    row = (lse, g)
    column = row if y is None else (columns, h)
    gradient = module.backward(x, y, s32, pairing, row, column)
    eager = reference.backward(x, y, s32, pairing, row, column)
    assert gradient.dtype == torch.float32
    assert gradient.shape == x.shape
    if truth.norm() > 0:
        assert relative(gradient, truth) <= relative(eager, truth) + tolerance
    else:
        assert gradient.abs().max() == 0 if gradient.numel() else True


def embeddings(n: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1).to(dtype)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "d"), [(2, 5), (4, 1), (66, 17), (252, 123), (1290, 128)])
@pytest.mark.parametrize("tau", [0.5, 0.1, 0.01, -0.2])
def test_symmetric(name, dtype, m, d, tau, generator) -> None:
    x = embeddings(m, d, dtype, generator)
    check(name, x, None, 1 / tau, Pairing(m, m // 2, leave_out_self=True), 1)


@pytest.mark.parametrize("name", RUNNABLE)
def test_symmetric_without_positives(name, generator) -> None:
    """Supervised contrast: every row but itself."""
    x = embeddings(601, 9, torch.float32, generator)
    check(name, x, None, 10.0, Pairing(601, 0, leave_out_self=True), 5)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n", "d", "shift", "base", "leave_out"),
    [
        (252, 507, 123, 0, 0, False),  # CLIP of a rank
        (126, 504, 32, 63, 252, True),  # NT-Xent of rank 2 of 4
        (7, 9000, 8, 0, 3, False),  # wider than one tile of columns
        (600, 600, 16, 0, 0, False),
        (1, 1, 4, 0, 0, False),  # no negatives at all
    ],
)
def test_rectangular(name, dtype, m, n, d, shift, base, leave_out, generator) -> None:
    x, y = embeddings(m, d, dtype, generator), embeddings(n, d, dtype, generator)
    pairing = Pairing(m, shift, 0, base, leave_out)
    check(name, x, y, 10.0, pairing, 2)
    check(name, y, x, 10.0, pairing.transposed(), 3)


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_shape(name: str, data: st.DataObject) -> None:
    """Property: no shape, pairing, scale or spread of the data breaks the agreement."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    half = data.draw(st.integers(1, 90))
    d = data.draw(st.integers(1, 40))
    scale = data.draw(st.sampled_from([0.5, 2.0, 10.0, 100.0, -3.0]))
    spread = data.draw(st.sampled_from([0.0, 1e-3, 1.0]))  # 0: all rows alike
    centre = torch.randn(d, generator=generator)
    x = F.normalize(centre + spread * torch.randn(2 * half, d, generator=generator), dim=1)
    check(name, x, None, scale, Pairing(2 * half, half, leave_out_self=True), seed)


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_side_only(name, generator) -> None:
    """A side without statistics adds nothing, not even where its exponentials would overflow."""
    x, y = embeddings(40, 8, torch.float32, generator), embeddings(60, 8, torch.float32, generator)
    x[0] = y[0] = 1.0
    pairing = Pairing(0)
    module = backend_for(name, x, y, pairing)
    scale = torch.tensor(300.0)
    lse, positive, columns = module.forward(x, y, scale, pairing, True)
    assert positive.isneginf().all()
    g = torch.randn(40, generator=generator)
    rows = module.backward(x, y, scale, pairing, (lse, g), None)
    logits = 300 * x.double() @ y.double().T
    p = torch.softmax(logits, 1) * g.double()[:, None]
    assert relative(rows, p @ y.double()) < 2e-4
    back = module.backward(y, x, scale, pairing.transposed(), None, (lse, g))
    assert relative(back, p.T @ x.double()) < 2e-4
    assert (columns.double() - logits.logsumexp(0)).abs().max() < 1e-3


@pytest.mark.parametrize("name", RUNNABLE)
def test_antipodal_and_converged_rows_at_tau_001(name, generator) -> None:
    """The spread of 200 nats at which a shared shift of the exponent underflows."""
    x = embeddings(130, 24, torch.float32, generator)
    x[65:] = x[:65]  # converged pairs
    x[3] = -x[4]  # antipodal rows
    x[64] = x[63]
    check(name, x, None, 100.0, Pairing(130, 65, leave_out_self=True), 4)


@pytest.mark.parametrize("name", RUNNABLE)
def test_empty(name) -> None:
    x = torch.empty(0, 5)
    pairing = Pairing(0, 0, leave_out_self=True)
    module = backend_for(name, x, None, pairing)
    lse, positive, columns = module.forward(x, None, torch.tensor(2.0), pairing, True)
    assert lse.shape == positive.shape == columns.shape == (0,)
    gradient = module.backward(x, None, torch.tensor(2.0), pairing, (lse, lse), (lse, lse))
    assert gradient.shape == (0, 5)
    lse, positive, _ = module.forward(torch.ones(3, 5), x, torch.tensor(2.0), Pairing(0))
    assert lse.isneginf().all()  # no columns are not the rows themselves
    assert positive.isneginf().all()


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_in_non_finite_out(name, poison, generator) -> None:
    x = embeddings(600, 8, torch.float32, generator)
    x[17, 3] = poison
    pairing = Pairing(600, 300, leave_out_self=True)
    module = backend_for(name, x, None, pairing)
    scale = torch.tensor(10.0)
    lse, positive, _ = module.forward(x, None, scale, pairing)
    truth, positive_truth, _ = reference.forward(x.double(), None, scale.double(), pairing)
    # Wherever the truth is not finite, neither is the answer; a NaN is never lost in a maximum.
    assert not lse[~truth.isfinite()].isfinite().any()
    assert not positive[~positive_truth.isfinite()].isfinite().any()
    if math.isnan(poison):
        others = torch.arange(600) != 317  # its positive leaves it out
        assert lse[others].isnan().all()
        g = torch.ones(600)
        gradient = module.backward(x, None, scale, pairing, (lse, g), (lse, g))
        assert not gradient.isfinite().any(1)[others].any()


@pytest.mark.parametrize("name", RUNNABLE)
def test_bitwise_repeatable(name, generator) -> None:
    x = embeddings(1100, 32, torch.float32, generator)
    pairing = Pairing(1100, 550, leave_out_self=True)
    module = backend_for(name, x, None, pairing)
    scale, g = torch.tensor(10.0), torch.randn(1100, generator=generator)

    def run() -> tuple[Tensor, Tensor]:
        lse, _, _ = module.forward(x, None, scale, pairing)
        return lse, module.backward(x, None, scale, pairing, (lse, g), (lse, g))

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_cpu_backend_gives_the_same_bits_with_any_number_of_threads(generator) -> None:
    x = embeddings(3000, 16, torch.float32, generator)
    pairing = Pairing(3000, 1500, leave_out_self=True)
    module = backend_for("cpu", x, None, pairing)
    g, threads = torch.randn(3000, generator=generator), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lse, _, _ = module.forward(x, None, torch.tensor(9.0), pairing)
            results.append(
                (lse, module.backward(x, None, torch.tensor(9.0), pairing, (lse, g), (lse, g)))
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])


def test_cuda_backend_is_preferred_only_where_results_prove_it() -> None:
    """Each file of the table was measured on that architecture, and CUDA C++ is never slower."""
    from benchmarks.report import RESULTS
    from sslfast.kernels.similarity_softmax import cuda, triton

    assert cuda.PROVEN or cuda.PRIORITY < triton.PRIORITY
    for capability, name in cuda.PROVEN.items():
        results = json.loads((RESULTS / name).read_text())
        assert tuple(results["environment"]["capability"]) == capability
        times = {(r["provider"], r["problem"]): r["seconds"] for r in results["rows"]}
        sizes = [size for provider, size in times if provider == "sslfast cuda"]
        assert sizes
        for size in sizes:
            assert times["sslfast cuda", size] <= times["sslfast triton", size]


def test_proof_holds_for_its_architecture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from sslfast.kernels.similarity_softmax import cuda, triton

    capabilities = [(9, 0)]
    monkeypatch.setattr(cuda, "PROVEN", {(9, 0): "similarity_softmax-h200.json"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capabilities[d])
    assert cuda._priority() > triton.PRIORITY
    capabilities.append((8, 0))
    assert cuda._priority() < triton.PRIORITY
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda._priority() < triton.PRIORITY
