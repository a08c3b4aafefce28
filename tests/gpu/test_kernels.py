"""Every backend that runs on CUDA tensors, against the float64 oracle, at GPU sizes."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from rounding import between
from sslfast.functional import ntxent
from sslfast.kernels import grouped_softmax as grouped
from sslfast.kernels import linear_cross_entropy as classifier
from sslfast.kernels import matryoshka_softmax as matryoshka
from sslfast.kernels import prototype_cross_entropy as prototypes
from sslfast.kernels import registry, sigreg
from sslfast.kernels import sigmoid_contrast as contrast
from sslfast.kernels.dtypes import accumulation_dtype
from sslfast.kernels.grouped_softmax import reference as grouped_oracle
from sslfast.kernels.linear_cross_entropy import reference as classifier_oracle
from sslfast.kernels.matryoshka_softmax import reference as matryoshka_oracle
from sslfast.kernels.philox.op import random_bits
from sslfast.kernels.prototype_cross_entropy import reference as prototypes_oracle
from sslfast.kernels.sigmoid_contrast import reference as contrast_oracle
from sslfast.kernels.sigreg import reference as sigreg_oracle
from sslfast.kernels.similarity_softmax import Pairing, add_positives, problem, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def cuda_backends(op: str) -> list[str]:
    return [
        b.name
        for b in registry.candidates(op)
        if b.unavailable() is None and b.module.DEVICE in ("cuda", "any")
    ]


def embeddings(n: int, d: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(n, d, device="cuda"), dim=1).to(dtype)


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("name", cuda_backends("similarity_softmax"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.5, 0.1, 0.01])
@pytest.mark.parametrize(
    ("m", "n", "d"),
    [
        (252, 0, 123),
        (252, 507, 123),
        (4098, 0, 128),
        (3000, 5001, 300),
        (200, 9001, 64),
        (512, 513, 768),
        (2000, 3001, 512),
        (9002, 0, 512),  # by its triangle
    ],
)
def test_against_float64(name: str, dtype: torch.dtype, tau: float, m: int, n: int, d: int) -> None:
    x = embeddings(m, d, dtype)
    y = embeddings(n, d, dtype) if n else None
    pairing = Pairing(m) if n else Pairing(m, m // 2, leave_out_self=True)
    backend = {b.name: b for b in registry.candidates("similarity_softmax")}[name]
    reason = backend.refusal(problem(x, y, pairing))
    if reason:
        pytest.skip(f"{name} refuses: {reason}")
    s, s64 = (torch.tensor(1 / tau, device="cuda", dtype=t) for t in (torch.float32, torch.float64))
    x64, y64 = x.double(), None if y is None else y.double()
    lse64, positive64, columns64 = reference.forward(x64, y64, s64, pairing, True)
    lse, positive, columns = backend.module.forward(x, y, s, pairing, True)
    for value, truth in ((lse, lse64), (positive, positive64), (columns, columns64)):
        assert (value.double() - truth).abs().max() <= 2e-6 / tau + TOLERANCE[dtype] / 100
    g, h = torch.randn(m, device="cuda"), torch.randn(n or m, device="cuda")
    row64, row = (lse64, g.double()), (lse, g)
    column64, column = (row64, row) if y is None else ((columns64, h.double()), (columns, h))
    truth = reference.backward(x64, y64, s64, pairing, row64, column64)
    eager = reference.backward(x, y, s, pairing, row, column)
    gradient = backend.module.backward(x, y, s, pairing, row, column)
    assert relative(gradient, truth) <= relative(eager, truth) + TOLERANCE[dtype]
    assert torch.equal(gradient, backend.module.backward(x, y, s, pairing, row, column))


@pytest.fixture
def _tf32() -> Iterator[None]:
    # monkeypatch would delete the attribute in the end, which torch does not allow.
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("name", [n for n in cuda_backends("similarity_softmax") if n != "tiled"])
@pytest.mark.usefixtures("_tf32")
def test_tf32_where_it_is_allowed(name: str) -> None:
    backend = {b.name: b for b in registry.candidates("similarity_softmax")}[name].module
    pairing, s = Pairing(252, 126, leave_out_self=True), torch.tensor(10.0, device="cuda")
    for d in (64, 123, 300):
        x = embeddings(252, d, torch.float32)
        truth, _, _ = reference.forward(x.double(), None, s.double(), pairing)
        lse, _, _ = backend.forward(x, None, s, pairing)
        assert (lse - truth).abs().max() < 5e-3
        g = torch.randn(252, device="cuda")
        want = reference.backward(x.double(), None, s.double(), pairing, *[(truth, g.double())] * 2)
        assert relative(backend.backward(x, None, s, pairing, *[(lse, g)] * 2), want) < 5e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "d", "rows"), [(512, 512, 768, 512), (3000, 5001, 512, 1000), (1, 5001, 512, 1)]
)
def test_both_gradients_by_blocks(
    dtype: torch.dtype, m: int, n: int, d: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block of rows, and several that add up."""
    triton = pytest.importorskip("sslfast.kernels.similarity_softmax.triton")
    monkeypatch.setattr(triton._triton_blocks, "rows_of_a_block", lambda *_: rows)
    x, y, pairing = embeddings(m, d, dtype), embeddings(n, d, dtype), Pairing(m, m // 3, 0, n - m)
    assert triton.FEATURES.one_pass(problem(x, y, pairing))
    s = torch.tensor(20.0, device="cuda")
    wide = x.double(), y.double(), s.double()
    lse, _, columns = reference.forward(*wide, pairing, True)
    g, h, w = (torch.randn(k, device="cuda", dtype=torch.float64) / m for k in (m, n, m))
    back, row, column = pairing.transposed(), (lse, g), (columns, h)
    truth = (
        reference.backward(*wide, pairing, row, column),
        reference.backward(wide[1], wide[0], wide[2], back, column, row),
    )
    add_positives(truth[0], wide[1], w, pairing)
    add_positives(truth[1], wide[0], w.roll(m // 3), back)
    sides = (lse.float(), g.float()), (columns.float(), h.float())
    got = twice(lambda: triton.backward_both(x, y, s, pairing, *sides, w.float()))
    for value, exact in zip(got, truth, strict=True):
        assert relative(value, exact) <= TOLERANCE[dtype]
    statistics = twice(lambda: triton.forward(x, y, s, pairing, True))
    for value, exact in zip(statistics, (lse, None, columns), strict=True):
        if exact is not None:
            assert (value.double() - exact).abs().max() <= 4e-5 + TOLERANCE[dtype] / 100


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the results and what the positives' float32 copies take, one block of weights."""
    triton = pytest.importorskip("sslfast.kernels.similarity_softmax.triton")
    products = pytest.importorskip("sslfast.kernels.products")
    sigmoid = pytest.importorskip("sslfast.kernels.sigmoid_contrast.triton")
    budget = 64 << 20
    monkeypatch.setattr(products, "MOST_BYTES", budget)
    n, d = 16384, 512
    x, y = (embeddings(n, d, torch.bfloat16) for _ in range(2))
    s, pairing, weight = torch.tensor(20.0, device="cuda"), Pairing(n), torch.ones(n, device="cuda")
    lse, _, columns = triton.forward(x, y, s, pairing, True)
    gradient = 4 * n * d

    def peak(run: Callable[[], object]) -> int:
        run()  # cuBLAS takes its workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    little = 4 << 20
    sides = (lse, weight), (columns, weight)
    both = peak(lambda: triton.backward_both(x, y, s, pairing, *sides, weight))
    assert both <= budget + 4 * gradient + little
    assert peak(lambda: triton.forward(x, y, s, pairing, True)) <= budget + little
    losses = peak(lambda: sigmoid.gradients(x, y, s, -s, pairing, weight, True))
    assert losses <= budget + 2 * gradient + little


def module_for(op: str, name: str, problem: registry.Problem):
    backend = {b.name: b for b in registry.candidates(op)}[name]
    reason = backend.refusal(problem)
    if reason:
        pytest.skip(f"{name} refuses: {reason}")
    return backend.module


def twice(gradients: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The gradients of a second call, which neither synchronises nor differs from the first."""
    first = gradients()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = gradients()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return second


@pytest.mark.parametrize("name", cuda_backends("grouped_softmax"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sides", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "d"), [(252, 0, 123), (252, 507, 123), (3000, 5001, 300), (512, 513, 768)]
)
def test_grouped_softmax(
    name: str, dtype: torch.dtype, masked: bool, sides: bool, m: int, n: int, d: int
) -> None:
    """Of groups alone, and with ids and a threshold that leave columns out."""
    x = embeddings(m, d, dtype)
    y = embeddings(n, d, dtype) if n else None
    module = module_for("grouped_softmax", name, grouped.problem(x, y))

    def ids(kinds: int) -> tuple[Tensor, Tensor]:  # beyond 32 bits
        row, column = ((torch.randint(kinds, (k,), device="cuda") << 33) - 7 for k in (m, n))
        return row, column if n else row

    ignored = ids(5) if masked else (None, None)
    limit = between(x, x if y is None else y, 0.25) if masked else None
    own = 0 if y is None else 4 if masked else None
    groups = grouped.Groups(*ids(m // 3), *ignored, limit, own)  # some rows have no positives
    scale = 10.0

    def given(to: torch.dtype) -> tuple:
        s = torch.tensor(scale, device="cuda", dtype=accumulation_dtype(to))
        return x.to(to), None if y is None else y.to(to), s, groups

    truth = grouped_oracle.forward(*given(torch.float64), sides)
    found = twice(lambda: module.forward(*given(dtype), sides))
    for value, exact in zip(found, truth, strict=True):
        bound = 2e-6 * scale + TOLERANCE[dtype] / 100
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=bound)  # -inf is -inf
    weights = [torch.randn_like(lse) / m for lse in truth]

    def gradients(backend: ModuleType, to: torch.dtype, lses: tuple[Tensor, ...]) -> tuple:
        row = [(lse, g.to(lse.dtype)) for lse, g in zip(lses, weights, strict=True)]
        row, column = row[:2], row[2:] if sides else (None, None)
        return backend.backward(*given(to), *row, *(row if y is None else column), n > 0)

    exact_gradients = gradients(grouped_oracle, torch.float64, truth)
    eager = gradients(grouped_oracle, dtype, found)
    got = twice(lambda: gradients(module, dtype, found))
    for value, exact, other in zip(got, exact_gradients, eager, strict=True):
        if exact.numel():
            assert relative(value, exact) <= relative(other, exact) + TOLERANCE[dtype]


@pytest.mark.parametrize("name", cuda_backends("sigmoid_contrast"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -20.0)])
@pytest.mark.parametrize(("m", "n", "d"), [(252, 507, 123), (3000, 5001, 300), (1000, 2000, 768)])
def test_sigmoid_contrast(
    name: str, dtype: torch.dtype, scale: float, bias: float, m: int, n: int, d: int
) -> None:
    x, y, pairing = embeddings(m, d, dtype), embeddings(n, d, dtype), Pairing(m, 3, 0, n - m)
    module = module_for("sigmoid_contrast", name, contrast.problem(x, y, pairing))
    s, b = (torch.tensor(t, device="cuda") for t in (scale, bias))
    weight = torch.randn(m, device="cuda") / m
    got = twice(lambda: module.gradients(x, y, s, b, pairing, weight, True))
    wide = x.double(), y.double(), s.double(), b.double(), pairing
    truth = contrast_oracle.gradients(*wide, weight.double(), True)
    eager = contrast_oracle.gradients(x, y, s, b, pairing, weight, True)
    for value, exact, other in zip(got, truth, eager, strict=True):
        assert relative(value, exact) <= relative(other, exact) + TOLERANCE[dtype]
    assert relative(module.forward(x, y, s, b, pairing), truth[0]) <= 2e-6 * scale


@pytest.mark.parametrize("name", cuda_backends("matryoshka_softmax"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "dims"),
    [(252, 0, (7, 40, 123)), (3000, 5001, (16, 64, 128, 300)), (512, 513, (768,))],
)
def test_prefixes(name: str, dtype: torch.dtype, m: int, n: int, dims: tuple[int, ...]) -> None:
    x = 3 * embeddings(m, dims[-1], dtype)
    y = embeddings(n, dims[-1], dtype) if n else None
    pairing = Pairing(m, m // 3, 0, n - m) if n else Pairing(m, m // 2, leave_out_self=True)
    module = module_for("matryoshka_softmax", name, matryoshka.problem(x, y, dims, pairing))

    def given(wide: bool) -> tuple:
        rows, columns = (None if t is None else t.double() if wide else t for t in (x, y))
        a = matryoshka.inverse_norms(rows, dims, True)
        b = a if columns is None else matryoshka.inverse_norms(columns, dims, True)
        dtype = torch.float64 if wide else torch.float32
        scale = torch.tensor(10.0, device="cuda", dtype=dtype)
        return rows, columns, scale, matryoshka.Prefixes(dims, a, b), pairing

    truth = matryoshka_oracle.forward(*given(True), True)
    found = twice(lambda: module.forward(*given(False), True))
    for value, exact in zip(found, truth, strict=True):
        assert (value.double() - exact).abs().max() <= 2e-5 + TOLERANCE[dtype] / 100
    lse, positive, columns_lse = truth
    g, w, h = (torch.randn_like(t) / m for t in (lse, positive, columns_lse))
    row, column = (lse, g), (columns_lse, h)
    sides = (row, column, w) if n else (row, row, w)
    exact = matryoshka_oracle.backward(*given(True), *sides, n > 0)
    narrow = *((s[0].float(), s[1].float()) for s in sides[:2]), w.float()
    got = twice(lambda: module.backward(*given(False), *narrow, n > 0))
    for value, wanted in zip(got, exact, strict=True):
        if wanted.numel():
            assert relative(value, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", cuda_backends("linear_cross_entropy"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("biased", "softcap"), [(False, None), (True, None), (True, 3.0)])
@pytest.mark.parametrize(("n", "v", "d"), [(7, 30522, 768), (252, 507, 123), (4000, 9001, 256)])
def test_linear_cross_entropy(
    name: str, dtype: torch.dtype, biased: bool, softcap: float | None, n: int, v: int, d: int
) -> None:
    x = torch.randn(n, d, device="cuda").to(dtype)
    w = (torch.randn(v, d, device="cuda") / d**0.5).to(dtype)
    bias = torch.randn(v, device="cuda").to(dtype) if biased else None
    targets = torch.randint(v, (n,), device="cuda")
    module = module_for("linear_cross_entropy", name, classifier.problem(x, w))
    weight, wants = torch.randn(n, device="cuda") / n, classifier.Wants(True, True, True)
    got = twice(lambda: module.gradients(x, w, bias, targets, weight, 0.1, wants, softcap))
    wide = x.double(), w.double(), None if bias is None else bias.double(), targets
    truth = classifier_oracle.gradients(*wide, weight.double(), 0.1, wants, softcap)
    eager = classifier_oracle.gradients(x, w, bias, targets, weight, 0.1, wants, softcap)
    for value, exact, other in zip(got, truth, eager, strict=True):
        assert relative(value, exact) <= relative(other, exact) + TOLERANCE[dtype]
    for value, exact in zip(module.forward(x, w, bias, targets, softcap), truth, strict=False):
        assert (value.double() - exact).abs().max() <= 1e-4


@pytest.mark.parametrize("name", cuda_backends("prototype_cross_entropy"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("views", "targets", "samples", "d", "e", "k"),
    [(10, 2, 60, 256, 128, 8192), (1, 1, 700, 64, 64, 3000), (7, 3, 19, 33, 17, 1031)],
)
def test_prototype_cross_entropy(
    name: str, dtype: torch.dtype, biased: bool, views: int, targets: int, samples: int,
    d: int, e: int, k: int,
) -> None:  # fmt: skip
    x, y = embeddings(views * samples, d, dtype), embeddings(targets * samples, e, dtype)
    w, v = embeddings(k, d, dtype), embeddings(k, e, dtype)
    module = module_for("prototype_cross_entropy", name, prototypes.problem(x[None], y[None], w))
    pairs = torch.rand(views, targets, device="cuda").sub_(0.2).clamp_(0)  # some are 0
    weight = torch.randn(views, samples, device="cuda") / samples
    shift = torch.randn(targets, k, device="cuda") if biased else None

    def given(to: torch.dtype, row_weight: Tensor | None = weight) -> tuple:
        dtype = accumulation_dtype(to)
        scale = torch.tensor(10.0, device="cuda", dtype=dtype)
        bias = None if shift is None else shift.to(dtype)
        student = prototypes.Side(x.to(to).view(views, samples, d), w.to(to), scale)
        teacher = prototypes.Side(y.to(to).view(targets, samples, e), v.to(to), 2 * scale, bias)
        rest = pairs.to(dtype), None if row_weight is None else row_weight.to(dtype)
        return student, teacher, *rest, prototypes.Wants(True, True)

    got = twice(lambda: module.losses(*given(dtype)))
    truth = prototypes_oracle.losses(*given(torch.float64))
    eager = prototypes_oracle.losses(*given(dtype))
    for value, exact, other in zip(got, truth, eager, strict=True):
        assert relative(value, exact) <= relative(other, exact) + TOLERANCE[dtype]
    alone = module.losses(*given(dtype, None))
    for value, exact in zip(alone[:3], truth, strict=False):
        assert relative(value, exact) <= 1e-5


def test_weights_add_up_over_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 16-bit operands are added to float32 gradients.

    Products of other shapes may add in another order. A logit, a sum of 128 terms, then differs by
    2^-18 at most, and of the weights G, which are rounded to bfloat16 (2^-8 apart), a share of
    2^-10 falls on the other side, 2^-7 of itself away: sqrt(2^-10) 2^-7 of the gradients' norm.
    Gradients that are added up in bfloat16 differ by 2^-8.
    """
    triton = pytest.importorskip("sslfast.kernels.linear_cross_entropy.triton")
    x = torch.randn(1000, 128, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(700, 128, device="cuda", dtype=torch.bfloat16) / 12
    targets, weight = torch.randint(700, (1000,), device="cuda"), torch.ones(1000, device="cuda")
    given = x, w, None, targets, weight, 0.0, classifier.Wants(True, True, True)
    whole = triton.gradients(*given)
    monkeypatch.setattr(triton, "rows_of_a_block", lambda *sizes: 130)
    parts = triton.gradients(*given)
    for part, one in zip(parts[:2], whole[:2], strict=True):  # log-sum-exps, targets' logits
        torch.testing.assert_close(part, one, rtol=0, atol=2.0**-17)
    for part, one in zip(parts[2:], whole[2:], strict=True):
        assert relative(part, one.double()) <= 2.0**-12


@pytest.mark.parametrize("name", cuda_backends("sigreg"))
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 252, 123), (8, 4098, 1024)])
def test_sigreg(name: str, scale: float, shape: tuple[int, int, int]) -> None:
    form = sigreg.Form(3.0, 17)
    p = scale * torch.randn(shape, device="cuda")
    given = torch.randn(shape[0], 2, form.count, shape[2], device="cuda")
    backend = {b.name: b.module for b in registry.candidates("sigreg")}[name]
    for view in range(shape[0]):  # of the oracle, all angles in float64
        wide = p[view : view + 1].double()
        truth, exact = sigreg_oracle.sums(wide, form), wide.clone()
        found = backend.sums(p[view : view + 1], form)
        assert ((found.double() - truth) / shape[1]).abs().max() < 2e-5
        sigreg_oracle.gradient_(exact, given[view : view + 1].double(), form)
        gradient = p[view : view + 1].clone()
        backend.gradient_(gradient, given[view : view + 1], form)
        assert relative(gradient, exact) < 1e-5 * scale
    together, gradient = backend.sums(p, form), p.clone()
    assert torch.equal(together, backend.sums(p, form))
    torch.testing.assert_close(together[-1:], backend.sums(p[-1:].contiguous(), form))
    backend.gradient_(gradient, given, form)
    alone = p[-1:].clone()
    backend.gradient_(alone, given[-1:], form)
    torch.testing.assert_close(gradient[-1:], alone)


@pytest.mark.parametrize("name", cuda_backends("philox"))
def test_philox_gives_the_bits_of_the_cpu(name: str) -> None:
    ids = torch.randint(-(2**62), 2**62, (1000,))
    truth = random_bits(ids, torch.tensor(2**33 + 5), -7, 3, 197)
    with sslfast.use_backend(name):
        bits = random_bits(ids.cuda(), torch.tensor(2**33 + 5, device="cuda"), -7, 3, 197)
    assert torch.equal(bits.cpu(), truth)


def test_cuda_graph_and_no_synchronisation() -> None:
    a, b = (torch.randn(512, 64, device="cuda", requires_grad=True) for _ in range(2))

    def step() -> Tensor:
        a.grad = b.grad = None
        loss = ntxent(a, b, 0.1)
        loss.backward()
        return loss.detach()  # its graph would hold nodes of this stream into the capture

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    graph.replay()
    torch.testing.assert_close(loss, expected)


def test_memory_is_linear() -> None:
    peaks = []
    for m in (16384, 32768):
        a, b = (torch.randn(m // 2, 128, device="cuda", requires_grad=True) for _ in range(2))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ntxent(a, b, 0.1).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.5 * peaks[0]
