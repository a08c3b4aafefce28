"""How a method's weights lie on the ranks: whole on one, or on each with averaged gradients."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sslfast.methods.base import Method
from sslfast.training.distributed import Ranks


class Strategy:
    """One process that holds everything; other strategies override what differs.

    It wraps the method before the optimiser is built, and is then the only one who knows where
    weights are. Every rank calls every function of it.

    Args:
        method: on this rank's device.
        compile: run the method by torch.compile.

    Attributes:
        method: as it was given.
        model: what a step calls: the method, wrapped and compiled.
    """

    def __init__(self, method: Method, *, compile: bool = False) -> None:
        self.method = method
        self.wrapped = self.wrap(method)
        self.model: Any = torch.compile(self.wrapped) if compile else self.wrapped

    def wrap(self, method: Method) -> nn.Module:
        """The module that exchanges what ranks have to exchange."""
        return method

    def no_sync(self) -> AbstractContextManager[Any]:
        """For a part of a step that is not the last: gradients stay here, and are added up."""
        return nullcontext()

    def state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What is the same on all ranks, whole, on rank 0: "model" and "optimizer"."""
        return {"model": self.method.state_dict(), "optimizer": optimizer.state_dict()}

    def load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self.method.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def exported(self) -> dict[str, Tensor]:
        """The weights of the module that is kept at the end, whole, on rank 0."""
        return self.method.exported().state_dict()

    def heads(self) -> dict[str, Tensor]:
        """The weights of the heads that are kept beside it, whole, on rank 0."""
        return nn.ModuleDict(self.method.heads()).state_dict()


class DDP(Strategy):
    """Gradients averaged over ranks, which all start from rank 0's weights.

    Buffers stay each rank's own (a queue or running statistics are not overwritten in every step);
    those of rank 0 are exported.
    """

    wrapped: DistributedDataParallel

    def wrap(self, method: Method) -> nn.Module:
        """The method in DistributedDataParallel."""
        # The keyword's name since torch 2.13; until then, the older one.
        names = inspect.signature(DistributedDataParallel).parameters
        renamed = "forward_sync_buffers" in names
        keyword: dict[str, Any] = {
            "forward_sync_buffers" if renamed else "broadcast_buffers": False
        }
        return DistributedDataParallel(method, **keyword)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Exchange nothing in the backward passes of this block."""
        return self.wrapped.no_sync()


def strategy_for(ranks: Ranks) -> type[Strategy]:
    """The strategy of so many ranks."""
    return Strategy if ranks.world_size == 1 else DDP
