"""MAE's encoder on the visible patches against the same encoder on all of them: ViT-B, 75 % hidden.

    python -m benchmarks.vit --out benchmarks/results/vit-cpu.json

Forward and backward in training mode; the decoder is the paper's (512 wide, 8 blocks).
"""

import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import Record
from benchmarks.harness.timing import Run
from sslfast import methods, models
from sslfast.data import Batch
from sslfast.methods.base import Context

ALL, VISIBLE, MAE = "encoder, all patches", "encoder, visible patches", "visible and decoder (MAE)"
TARGETS = {VISIBLE: 0.35, MAE: 0.65}  # of the time on all patches
SETS = 4  # of images, in turn


def runs(name: str, batch: int, device: torch.device) -> dict[str, Run]:
    """Everything that is timed."""
    encoder = models.create(name)
    method = methods.create("mae", encoder).to(device).train()
    inputs = [
        Batch((torch.randn(batch, 3, *encoder.img_size, device=device),), ids)
        for ids in torch.arange(SETS * batch, device=device).split(batch)
    ]
    contexts = [Context(step, 0, SETS) for step in range(SETS)]

    def step(loss: Tensor) -> None:
        loss.backward()
        method.zero_grad(set_to_none=True)

    def whole(turn: int) -> None:
        step(encoder.forward_features(inputs[turn % SETS].views[0]).square().mean())

    def visible(turn: int) -> None:
        images = inputs[turn % SETS]
        ids = method.mask(images, contexts[turn % SETS]).ids_keep
        step(encoder.forward_features(images.views[0], ids).square().mean())

    def mae(turn: int) -> None:
        step(method(inputs[turn % SETS], contexts[turn % SETS])["loss"])

    return {ALL: whole, VISIBLE: visible, MAE: mae}


def main() -> int:
    """Print the table and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, help="images a step")
    options = parser.parse_args()
    record = Record("vit", options)
    batch = options.batch or (128 if record.device.type == "cuda" else 4)
    name = "vit_micro" if record.quick else "vit_base"
    side = models.create(name).img_size[0]
    rows = record.measure(
        f"{name}, {batch} images of {side} pixels a step, 75 % hidden",
        partial(runs, name, batch, record.device),
        5.0 if record.quick else 60.0,
    )
    seconds = {row.provider: row.seconds for row in rows}
    for provider, target in TARGETS.items():
        if {ALL, provider} <= set(seconds):
            ratio = seconds[provider] / seconds[ALL]
            print(f"{provider}: {ratio:.2f} of the time on all patches (target: at most {target})")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
