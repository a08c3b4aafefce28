"""What the ops hold on a GPU at their peak, counted on fake CUDA tensors: no GPU is needed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness.launches import recording
from sslfast.kernels.info_nce.pairs import _scaled_pairs
from sslfast.kernels.library import times
from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.kernels.linear_cross_entropy.op import _as_inputs
from sslfast.kernels.prototype_cross_entropy import Side
from sslfast.kernels.unit_rows.op import _unit_rows

classifier = pytest.importorskip("sslfast.kernels.linear_cross_entropy.triton")
prototypes = pytest.importorskip("sslfast.kernels.prototype_cross_entropy.triton")


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that were made in here and are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.given: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.made:
                self.given.add(x.untyped_storage()._cdata)
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.given:
                storage = x.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.made = {k: (ref, n) for k, (ref, n) in self.made.items() if not ref.expired()}
        self.peak = max(self.peak, sum(n for _, n in self.made.values()))
        return result


@pytest.fixture
def _fake_gpu() -> Iterator[None]:
    """Tensors on "cuda" have a shape and no memory."""
    with FakeTensorMode():
        yield


def test_the_count_sees_what_is_alive() -> None:
    x = torch.ones(1000)
    with LiveBytes() as live:
        y = x + 1
        z = y + 1
        del y
        z += 1
        x.view(10, 100)[2:] * 2
    assert live.peak == 8000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "d", "v"), [(8192, 2048, 128_256), (100, 4096, 131_072)])
def test_linear_cross_entropy(dtype: torch.dtype, n: int, d: int, v: int) -> None:
    """The formulas of kernels/linear_cross_entropy/triton.py, forward and backward."""
    x, w = (torch.empty(k, d, dtype=dtype, device="meta") for k in (n, v))
    targets = torch.empty(n, dtype=torch.int64, device="meta")
    row_weight, factor = torch.empty(n, device="meta"), torch.empty((), device="meta")
    size, results = dtype.itemsize, 4 * v * d + 4 * n * d
    with recording(90), LiveBytes() as live:
        *_, d_x, d_w, d_b = classifier.gradients(
            x, w, None, targets, row_weight, 0.0, Wants(True, True, False)
        )
        a_row = v * (4 if size == 4 else 4 + size)
        step = classifier.rows_of_a_block(n, a_row, 4 * v * d, x.device)
    assert (step < n) == (n == 8192)
    assert results + step * a_row <= live.peak <= results + step * a_row + 1000 * (n + 1)
    with LiveBytes() as live:
        _as_inputs((d_x, d_w, d_b), (dtype, dtype, None), (True, True, False), factor)
    assert live.peak == size * (v * d + n * d)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("g", "k"), [(2048, 65_536), (64, 65_536), (5000, 1000)])
def test_prototype_cross_entropy(dtype: torch.dtype, g: int, k: int) -> None:
    """The formula of kernels/prototype_cross_entropy/triton.py, and what it calls little."""
    s, t, d = 8, 2, 256

    def side(n: int, bias: Tensor | None = None) -> Side:
        rows, weight = (torch.empty(*m, d, dtype=dtype, device="meta") for m in ((n, g), (k,)))
        return Side(rows, weight, torch.empty((), device="meta"), bias)

    given = side(s), side(t, torch.empty(t, k, device="meta"))
    pairs, row_weight = torch.empty(s, t, device="meta"), torch.empty(s, g, device="meta")
    with recording(90), LiveBytes() as live:
        prototypes.losses(*given, pairs, row_weight, prototypes.Wants(True, True))
        a_sample = k * (s * (4 if dtype.itemsize == 4 else 6) + 4 * t)
        step = prototypes.rows_of_a_block(g, a_sample, 4 * k * d, pairs.device)
    assert (step < g) == (g == 2048)
    known = step * a_sample + 4 * k * d + 4 * s * g * d
    assert known <= live.peak <= 1.05 * known


@pytest.mark.usefixtures("_fake_gpu")
def test_pairs_keep_no_copies_in_float32() -> None:
    query, key = (torch.empty(8192, 128, dtype=torch.float16, device="cuda") for _ in "qk")
    scale = torch.empty((), device="cuda")
    with LiveBytes() as live:
        kept = _scaled_pairs._init_fn(query, key, scale)
    held = 2 * query.numel() + 4 * 4 * len(query)
    assert sum(x.untyped_storage().nbytes() for x in kept) == held
    assert live.peak <= held + 4 * query.numel() + 4 * 4 * len(query)


@pytest.mark.usefixtures("_fake_gpu")
def test_a_queue_is_normalised_without_a_copy_in_float32() -> None:
    queue = torch.empty(65_536, 128, dtype=torch.bfloat16, device="cuda")
    with LiveBytes() as live:
        _unit_rows._init_fn(queue)
    assert live.peak == 2 * queue.numel() + 4 * len(queue)
    factor = torch.empty((), device="cuda")
    with LiveBytes() as live:
        times(queue.float(), factor, torch.bfloat16)
    assert live.peak == 6 * queue.numel()
