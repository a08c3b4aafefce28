"""A function's two passes as runs, on sets of inputs in turn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.timing import Run

Inputs = Sequence[tuple[Any, ...]]


def forward(function: Callable[..., object], inputs: Inputs) -> Run:
    """Calls the function; nothing is kept of what it returns."""
    return lambda turn: function(*inputs[turn % len(inputs)])


def forward_backward(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    """Calls the function and puts a gradient into every input that requires one.

    The last gradients are freed first, and so are no part of what a call takes in memory.
    """

    def run(turn: int) -> None:
        given = inputs[turn % len(inputs)]
        for x in given:
            if isinstance(x, Tensor):
                x.grad = None
        function(*given).backward()

    return run


def gradients(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    """Calls the function and takes the gradients of inputs that require one, which nobody keeps.

    Where it returns more than one number, the upstream gradient is random, the same in every turn.
    """
    upstream: list[Tensor] = []

    def run(turn: int) -> None:
        given = inputs[turn % len(inputs)]
        found = function(*given)
        if not upstream:
            upstream.append(torch.randn_like(found) if found.ndim else torch.ones_like(found))
        wanted = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
        torch.autograd.grad(found, wanted, upstream[0])

    return run
