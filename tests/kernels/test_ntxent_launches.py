"""How many kernels NT-Xent launches on a GPU: counted on tensors without memory, no GPU needed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from benchmarks.harness.launches import recording
from sslfast.functional import ntxent
from sslfast.kernels import registry
from sslfast.kernels.similarity_softmax.op import _similarity_softmax, similarity_softmax_backward
from sslfast.losses import NTXentLoss

OURS = {o._qualname: o._init_fn for o in (_similarity_softmax, similarity_softmax_backward)}
ALLOCATE = ("empty", "detach", "alias", "lift_fresh")


class Count(TorchDispatchMode):
    """Names of torch's ops that launch something; our ops do what they do on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name in OURS:
            with self:
                return OURS[name](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given = [t for t in args if isinstance(t, Tensor)]
        # Not by the schema: within an op, torch does not say whether ``to`` is a copy.
        view = not func._schema.is_mutable and any(torch._C._is_alias_of(result, t) for t in given)
        if result.numel() and not view and not any(word in name for word in ALLOCATE):
            self.names.append(name.removeprefix("aten::"))
        return result


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's backends, for the "meta" device too, which has no autocast to be left."""

    def pick(name: str, problem: Any) -> Any:
        return {b.name: b.module for b in registry.candidates(name)}["triton"]

    monkeypatch.setattr(registry, "pick", pick)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def launched(loss: Callable[[], Tensor]) -> tuple[list[str], list[str]]:
    """What forward and backward launch."""
    with recording(90) as since:
        with Count() as forward:
            value = loss()
        forward.names += [launch.kernel.fn.__name__ for launch in since("")]
        with Count() as backward:
            value.backward()
        backward.names += [launch.kernel.fn.__name__ for launch in since("")]
    print(*forward.names)
    print(*backward.names)
    return forward.names, backward.names


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("m", [8192, 131072])
@pytest.mark.parametrize("loss", [ntxent, NTXentLoss(0.1)], ids=["function", "module"])
def test_launches(loss: Callable[..., Tensor], m: int) -> None:
    out = [
        torch.empty(m // 2, 128, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for _ in "ab"
    ]
    forward, backward = launched(lambda: loss(*out))
    assert forward.count("normalize_kernel") == forward.count("forward_kernel") == 1
    assert backward.count("gradient_kernel") == backward.count("backward_kernel") == 1
    # One of them is the 1 that loss.backward() starts from.
    assert len(forward) + len(backward) <= 15


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_launches_with_a_temperature_that_learns() -> None:
    out = [torch.empty(4096, 128, dtype=torch.bfloat16, device="meta") for _ in "ab"]
    temperature = torch.empty((), device="meta", requires_grad=True)
    forward, backward = launched(lambda: ntxent(*out, temperature))
    assert len(forward) + len(backward) <= 19
