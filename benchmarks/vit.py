"""MAE's encoder on the visible patches against the same encoder on all of them: ViT-B, 75 % hidden.

    python -m benchmarks.vit --out benchmarks/results/vit-cpu.json

Forward and backward in training mode; the decoder is the paper's (512 wide, 8 blocks).
"""

import torch
from torch import Tensor

from benchmarks import common
from sslfast import methods, models
from sslfast.data import Batch
from sslfast.methods.base import Context

ALL, VISIBLE, MAE = "encoder, all patches", "encoder, visible patches", "visible and decoder (MAE)"
TARGETS = {VISIBLE: 0.35, MAE: 0.65}  # of the time on all patches


def main() -> None:
    """Run, print and write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=None, help="images a step")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, altogether")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    batch = args.batch or (128 if device.type == "cuda" else 4)
    name = "vit_micro" if args.quick else "vit_base"
    encoder = models.create(name)
    method = methods.create("mae", encoder).to(device).train()
    inputs = [
        Batch((torch.randn(batch, 3, *encoder.img_size, device=device),), ids)
        for ids in torch.arange(4 * batch, device=device).split(batch)
    ]
    contexts = [Context(step, 0, len(inputs)) for step in range(len(inputs))]

    def step(loss: Tensor) -> None:
        loss.backward()
        method.zero_grad(set_to_none=True)

    def whole(turn: int) -> None:
        step(encoder.forward_features(inputs[turn % 4].views[0]).square().mean())

    def visible(turn: int) -> None:
        images = inputs[turn % 4]
        ids = method.mask(images, contexts[turn % 4]).ids_keep
        step(encoder.forward_features(images.views[0], ids).square().mean())

    def mae(turn: int) -> None:
        step(method(inputs[turn % 4], contexts[turn % 4])["loss"])

    problem = f"{name}, {batch} images of {encoder.img_size[0]} pixels a step, 75 % hidden"
    runs = {ALL: whole, VISIBLE: visible, MAE: mae}
    rows = common.rows_of("vit", problem, runs, device, args.seconds)
    common.print_table(rows, ALL)
    seconds = {row.provider: row.seconds for row in rows}
    for provider, target in TARGETS.items():
        ratio = seconds[provider] / seconds[ALL]
        print(f"{provider}: {ratio:.2f} of the time on all patches (target: at most {target})")
    if args.out:
        common.write(args.out, rows, device)


if __name__ == "__main__":
    main()
