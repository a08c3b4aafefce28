"""What the ops hold on a GPU at their peak, counted on fake CUDA tensors: no GPU is needed."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslfast.kernels.linear_cross_entropy import Wants
from sslfast.ops._gradients import times
from sslfast.ops.linear_cross_entropy import _as_inputs
from sslfast.ops.scaled_pairs import _scaled_pairs
from sslfast.ops.unit_rows import _unit_rows

classifier = pytest.importorskip("sslfast.kernels.linear_cross_entropy.triton")
similarity = pytest.importorskip("sslfast.kernels.similarity_softmax.triton")


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


class Launch:
    """A kernel that runs nowhere."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def part(x: Tensor, index: int | slice) -> Tensor:
    """x[index] of a fake tensor: torch without CUDA refuses to index one on a GPU."""
    if isinstance(index, int):
        return x.select(0, index)
    first, end, _ = index.indices(len(x))
    return x.narrow(0, first, end - first)


def assign(x: Tensor, index: int | slice, value: Tensor) -> None:
    """x[index] = value, which takes no memory."""
    assert part(x, index).shape == value.shape


def product(*operands: Tensor, out: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """torch.mm or torch.addmm, which must write where it is told."""
    a, b = operands[-2:]
    assert (*a.shape[:1], *b.shape[1:]) == out.shape
    assert all(x is out for x in operands[:-2])
    return out


@pytest.fixture
def _fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are left out, and tensors on "cuda" have a shape and no memory."""
    for module, kernels in (
        ("linear_cross_entropy.triton", ("classifier_kernel", "logits_kernel", "weigh_kernel")),
        ("similarity_softmax.triton", ("merge_kernel",)),
        ("_growth", ("growth_kernel",)),
    ):
        for kernel in kernels:
            monkeypatch.setattr(f"sslfast.kernels.{module}.{kernel}", Launch())
    monkeypatch.setattr(classifier, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(classifier, "block_bytes", lambda device: 5 << 29)
    monkeypatch.setattr(torch.cuda, "device_of", nullcontext)
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch, "addmm", product)
    monkeypatch.setattr(Tensor, "__getitem__", part)
    monkeypatch.setattr(Tensor, "__setitem__", assign)
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


@pytest.mark.usefixtures("_fake_gpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("n", "d", "v"), [(8192, 2048, 128_256), (100, 4096, 131_072)])
def test_linear_cross_entropy(dtype: torch.dtype, n: int, d: int, v: int) -> None:
    """The formulas of kernels/linear_cross_entropy/triton.py, forward and backward."""
    x, w = (torch.empty(k, d, dtype=dtype, device="cuda") for k in (n, v))
    targets = torch.empty(n, dtype=torch.int64, device="cuda")
    row_weight, factor = torch.empty(n, device="cuda"), torch.empty((), device="cuda")
    step = classifier.rows_of_a_block(n, v, d, dtype, 5 << 29)
    assert (step < n) == (n == 8192)
    size = dtype.itemsize
    results = 4 * v * d + 4 * n * d
    with LiveBytes() as live:
        *_, d_x, d_w, d_b = classifier.gradients(
            x, w, None, targets, row_weight, 0.0, Wants(True, True, False)
        )
    block = step * v * (4 if dtype == torch.float32 else 4 + size)
    assert results + block <= live.peak <= results + block + 1000 * (n + 1)
    with LiveBytes() as live:
        _as_inputs((d_x, d_w, d_b), (dtype, dtype, None), (True, True, False), factor)
    assert live.peak == size * (v * d + n * d)


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
