"""Contrastive losses over batches whose activations do not fit: GradCache in one backward call.

GradCache (Gao et al. 2021, arXiv:2101.06983) encodes the batch in chunks without keeping their
activations, takes the loss and its gradient with respect to the embeddings, and encodes each chunk
again to carry that gradient on. Checkpointing every chunk's call does the same inside autograd: the
second pass is the recomputation, so that gradient scaling, accumulation and DDP need no code here.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sslfast._nests import join_tensors, map_tensors

Encoder = Callable[[Any], Any]


def cached(
    loss: Callable[..., Any],
    encoders: Encoder | Sequence[Encoder],
    *inputs: Any,
    chunk_size: int,
) -> Any:
    """Return loss(*embeddings) with the activations of one chunk in memory at a time.

    The embeddings of an input are those of its chunks, one after another. The backward pass,
    started by ``.backward()`` on the result as usual, encodes each chunk a second time, under the
    same random state and autocast: gradients are exactly those of the same calls with all
    activations kept, dropout included. A step costs one more forward pass. What stays in memory for
    the whole batch are the inputs and the embeddings.

    Batch statistics are those of a chunk, as with a batch of that size. Buffers (running statistics
    among them) are written by the first pass only, if the encoder is a module or its bound method;
    other state that it changes when called is changed twice.

    Args:
        loss: takes the embeddings in the order of the inputs; its own parameters get gradients too.
        encoders: one for all inputs, or a list of one for each; each takes a chunk of its input as
            its only argument, and returns a tensor, or a nest of tensors, of as many rows. DDP's
            wrapper is called once, for the first chunk, so that ranks may differ in chunks.
        inputs: tensors, lists of strings, or nests (tuple, list, dict) of these, of one first
            dimension; anything else in a nest reaches every chunk as it is.
        chunk_size: rows that pass an encoder at a time, positive.

    Returns:
        What the loss returns.

    Raises:
        ValueError: a chunk_size below 1, no inputs, a number of encoders that does not match them,
            an input without rows or of several lengths, an output of other rows than its chunk.

    Example:
        >>> loss = cached(NTXentLoss(0.1), encoder, view0, view1, chunk_size=256)
        >>> loss.backward()
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 row, got {chunk_size}")
    if not inputs:
        raise ValueError("cached needs at least one input to encode")
    if isinstance(encoders, (Sequence, nn.ModuleList)):
        each: list[Encoder] = list(encoders)
    else:
        each = [encoders] * len(inputs)
    if len(each) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs need one encoder or as many, got {len(each)}")
    repeatable = {id(encoder): _Repeatable(encoder) for encoder in each}
    pairs = zip(each, inputs, strict=True)
    return loss(*(_encode(repeatable[id(encoder)], x, chunk_size) for encoder, x in pairs))


class _Repeatable:
    """An encoder that is called for every chunk, and again in the backward pass."""

    def __init__(self, encoder: Encoder) -> None:
        # DDP's wrapper prepares the reduction and shares buffers: once a step, on every rank.
        self.next = encoder
        self.inner = encoder.module if isinstance(encoder, DistributedDataParallel) else encoder
        owner = getattr(self.inner, "__self__", self.inner)  # a bound method's module
        self.modules = list(owner.modules()) if isinstance(owner, nn.Module) else []

    def __call__(self, chunk: Any) -> Any:
        call, self.next = self.next, self.inner
        return call(chunk)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Those of the first call and of the second."""
        return nullcontext(), _BuffersAside(self.modules)


class _BuffersAside:
    """While open, buffers are copies: what the second call writes is dropped."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __enter__(self) -> None:
        self.buffers = [
            (module, name, buffer)
            for module in self.modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        for module, name, buffer in self.buffers:
            setattr(module, name, buffer.clone())

    def __exit__(self, *exception: object) -> None:
        for module, name, buffer in self.buffers:
            setattr(module, name, buffer)


def _encode(encoder: _Repeatable, x: Any, chunk_size: int) -> Any:
    """Outputs of all chunks of x, as one."""
    rows = _rows(x)
    outputs = []
    for start in range(0, rows, chunk_size):
        size = min(chunk_size, rows - start)
        chunk = _window(x, start, size)
        output = checkpoint(encoder, chunk, use_reentrant=False, context_fn=encoder.contexts)
        if _rows(output) != size:
            raise ValueError(f"an encoder returned {_rows(output)} rows for a chunk of {size}")
        outputs.append(output)
    return join_tensors(outputs)


def _window(nest: Any, start: int, size: int) -> Any:
    """Rows of every tensor, and of every list of strings, of a nest."""

    def cut(rows: Any) -> Any:
        return rows[start : start + size]

    return map_tensors(nest, cut, cut)


def _rows(nest: Any) -> int:
    """The first dimension that all tensors and lists of strings of a nest have in common."""
    found: list[tuple[int, ...]] = []

    def look(rows: Any) -> Any:
        found.append(tuple(rows.shape[:1]) if isinstance(rows, Tensor) else (len(rows),))
        return rows

    map_tensors(nest, look, look)
    if len(set(found)) != 1 or not found[0] or found[0] == (0,):
        raise ValueError(
            "inputs and outputs of an encoder must be tensors, or nests of tensors (and lists of "
            f"strings), of one first dimension above 0, got {found}"
        )
    return found[0][0]
