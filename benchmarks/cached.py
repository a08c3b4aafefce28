"""A contrastive step in chunks (``losses.cached``) beside the same step with all activations kept.

    python -m benchmarks.cached --out benchmarks/results/cached-cpu.json

Forward and backward of NT-Xent over pairs of random images. Encoding each chunk a second time costs
a forward pass, about a third of a step; memory is that of a chunk.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import peers
from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Run
from sslfast import models
from sslfast.losses import NTXentLoss, cached

WHOLE = "the batch at once"
GRAD_CACHE = "GradCache"
SETS = 2  # of inputs, in turn

Step = Callable[[nn.Module, Tensor, Tensor], None]


def whole(encoder: nn.Module, view0: Tensor, view1: Tensor) -> None:
    """All activations at once."""
    NTXentLoss(0.1)(encoder(view0), encoder(view1)).backward()


def chunked(encoder: nn.Module, view0: Tensor, view1: Tensor, chunk_size: int) -> None:
    """Those of a chunk at a time."""
    cached(NTXentLoss(0.1), encoder, view0, view1, chunk_size=chunk_size).backward()


def grad_cache(chunk_size: int) -> Step:
    """The same by the decorators of GradCache 0.0.1, as its description says."""
    functional = peers.load("gradcache.functional")
    encode = functional.cached(lambda encoder, images: encoder(images))
    loss = functional.cat_input_tensor(NTXentLoss(0.1))

    def step(encoder: nn.Module, *views: Tensor) -> None:
        made = [[encode(encoder, chunk) for chunk in view.split(chunk_size)] for view in views]
        loss(*([embedding for embedding, _ in pairs] for pairs in made)).backward()
        for pairs in made:
            for embedding, backward in pairs:
                backward(embedding)

    return step


def run(encoder: nn.Module, step: Step, inputs: Tensor, turn: int) -> None:
    """One step, without an optimiser."""
    step(encoder, *inputs[turn % SETS])
    encoder.zero_grad(set_to_none=True)


def runs(name: str, pairs: int, chunk_size: int, device: torch.device) -> dict[str, Run]:
    """Everything that is timed."""
    encoder = models.create(name).to(device)
    shape = SETS, 2, pairs, 3, *encoder.img_size
    inputs = torch.randn(shape, device=device)
    steps: dict[str, Step] = {
        WHOLE: whole,
        GRAD_CACHE: peers.Lazy(partial(grad_cache, chunk_size)),
        f"{OURS} cached": partial(chunked, chunk_size=chunk_size),
    }

    return {key: partial(run, encoder, step, inputs) for key, step in steps.items()}


def main() -> int:
    """Print the table and write the results."""
    record = Record("cached", arguments(__doc__).parse_args())
    large = record.device.type == "cuda" and not record.quick
    name = "vit_small" if large else "vit_micro"
    pairs, chunk_size = (1024, 128) if large else (16, 4) if record.quick else (256, 32)
    size = models.create(name).img_size[0]
    record.measure(
        f"{name}, {pairs} pairs of {size} pixels in chunks of {chunk_size}",
        partial(runs, name, pairs, chunk_size, record.device),
        5.0 if record.quick else 60.0,
        baseline=WHOLE,
    )
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
