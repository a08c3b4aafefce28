"""Copies of networks, for teachers."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sslfast.ema.pairs import named_tensors


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel or torch.compile."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(module, wrappers) or "_orig_mod" in module._modules:
        module = module.get_submodule("module" if isinstance(module, wrappers) else "_orig_mod")
    return module


class _Detached(TorchFunctionMode):
    """Deep copies of tensors without the graph that made them, which torch refuses to copy.

    Such are the weight that ``torch.nn.utils.weight_norm`` and ``spectral_norm`` leave in a module,
    and activations that it keeps.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, known = args
        if id(tensor) not in known:
            known[id(tensor)] = tensor.detach().clone()
        return known[id(tensor)]


def copy_of(
    student: nn.Module, dtype: torch.dtype | None, device: torch.device | None
) -> nn.Module:
    """A copy in eval mode, whose parameters take no gradients.

    Raises:
        TypeError: a student in TorchScript, or one that holds what cannot be copied.
        ValueError: a student on the meta device or already sharded by FSDP.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in student.modules()):
        raise TypeError(
            "the student is in TorchScript: make the teacher of the module that was scripted or "
            "traced"
        )
    for name, tensor in named_tensors(student).items():
        if tensor.device.type == "meta":
            raise ValueError(f"{name} of the student is on the meta device: materialise it first")
        if hasattr(tensor, "device_mesh"):
            raise ValueError(
                f"{name} of the student is sharded: make the teacher first, then apply "
                "fully_shard to the student and to teacher.module"
            )
    with _Detached():
        try:
            copy = deepcopy(student)
        except TypeError as error:
            raise TypeError(
                f"the student cannot be copied ({error}): keep what is no state of the network out "
                "of it, or give its class a __deepcopy__"
            ) from error
    return copy.requires_grad_(False).eval().to(device, dtype)
