"""Every backend that runs on CUDA tensors, against the float64 oracle, at GPU sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sslfast
from sslfast.functional import ntxent
from sslfast.kernels import registry
from sslfast.kernels.similarity_softmax import Pairing, problem, reference
from sslfast.ops import random_bits

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
    [(252, 0, 123), (252, 507, 123), (4098, 0, 128), (3000, 5001, 300), (200, 9001, 64)],
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


@pytest.mark.parametrize("name", [n for n in cuda_backends("similarity_softmax") if n != "tiled"])
def test_tf32_where_it_is_allowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
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
        return loss

    stream = torch.cuda.Stream()
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
