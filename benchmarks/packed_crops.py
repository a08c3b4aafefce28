"""Crops of two sizes through a ViT-S: in one pass, in one for each size, in one for each crop.

    python -m benchmarks.packed_crops --out benchmarks/results/packed_crops-cpu.json

Forward and backward in training mode, 2 crops of 224 and 8 of 96 pixels of every image. Aimed at:
1.2 times as fast as two passes. Then the attention of one block alone: size by size, as the models
do it, beside torch's nested tensors, a dense mask and, on a GPU, FlexAttention with one of blocks.

Predicted before the first measurement, for 2 images in float32 on two cores with 180 GFLOP/s and
15 GB/s; 4 x 197 + 16 x 37 = 1,380 tokens:

    all         products 3 x 2 x 21.3 M x 1,380 = 176 GFLOP, attention 12: 1.04 s; passes over
                activations 0.3 s
    two passes  weights of 85 MB are read twice more and their gradients added, 0.5 GB, 34 ms; 2,000
                more operations of 5 us, 10 ms: 1.03 times as long as one pass
    ten passes  weights and gradients nine times, 0.3 s, products of 74 and 394 rows at 0.9 of the
                rate: 1.3 times as long as one pass

Of two passes found on one thread, by its processor's time: 1.00 to 1.03. Nine tenths are products
and attention, which are the same; no CPU without other work will show 1.2. It was 1.3 to 1.6 on two
cores that others used too: every operation on two threads waits for the slower one, and one pass
has half as many. Nested attention took 9 times as long as size by size, a dense mask 8 times, and
FlexAttention has no gradient on a CPU.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.harness.arguments import arguments
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.timing import Run
from sslfast import models
from sslfast.models.packing import Packing, pack
from sslfast.models.transformer import Attention

TWO, TEN, PACKED = "a pass a size", "a pass a crop", f"{OURS}, one pass"
TARGET = 1.2  # times as fast as a pass for each size
PATCH, HEAD = 16, 64  # pixels of a patch, width of a head
CROPS = {224: 2, 96: 8}  # pixels: crops of an image


def runs(name: str, batch: int, crops: dict[int, int], device: torch.device) -> dict[str, Run]:
    """Everything that is timed."""
    encoder = models.create(name, dynamic_img_size=True).to(device).train()
    views = [
        torch.randn(batch, 3, side, side, device=device)
        for side, count in crops.items()
        for _ in range(count)
    ]
    sizes = [torch.cat([v for v in views if v.shape[-1] == side]) for side in crops]

    def step(encode: Callable[[], list[Tensor]], turn: int) -> None:
        torch.stack([features.square().mean() for features in encode()]).sum().backward()
        encoder.zero_grad(set_to_none=True)

    return {
        TWO: partial(step, lambda: [encoder(x) for x in sizes]),
        TEN: partial(step, lambda: [encoder(x) for x in views]),
        PACKED: partial(step, lambda: encoder.forward_crops(views)),
    }


def attention_runs(
    batch: int, crops: dict[int, int], width: int, device: torch.device
) -> dict[str, Run]:
    """Self-attention of packed tokens, forward and backward, in every way that torch offers."""
    heads, length = width // HEAD, {side: 1 + (side // PATCH) ** 2 for side in crops}
    packing = Packing(
        tuple((batch * count, length[side]) for side, count in crops.items()), (None,) * len(crops)
    )
    lengths = torch.tensor([n for images, n in packing.shapes for _ in range(images)])
    ends = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).to(device)
    image = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
    tokens = len(image)
    qkv = torch.randn(tokens, 3 * width, device=device, requires_grad=True)
    layer = Attention(width, heads).to(device)
    compiled = torch.compile(flex_attention)
    blocks = create_block_mask(
        lambda _b, _h, i, j: image[i] == image[j], None, None, tokens, tokens, device=device.type
    )

    def apart() -> tuple[Tensor, ...]:
        """Queries, keys and values, [S, heads, D / heads] each."""
        return qkv.unflatten(1, (3, heads, HEAD)).unbind(1)

    def by_size() -> Tensor:
        return pack([layer.attend(part) for part in packing.unpack(qkv)])

    def nested() -> Tensor:
        rows = (torch.nested.nested_tensor_from_jagged(t.contiguous(), ends) for t in apart())
        q, k, v = (row.transpose(1, 2) for row in rows)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values().flatten(1)

    def masked() -> Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in apart())
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=image[:, None] == image)
        return x[0].transpose(0, 1).flatten(1)

    def flex() -> Tensor:
        q, k, v = (t.transpose(0, 1)[None].contiguous() for t in apart())
        return compiled(q, k, v, block_mask=blocks)[0].transpose(0, 1).flatten(1)

    def step(attend: Callable[[], Tensor], turn: int) -> None:
        attend().square().mean().backward()
        qkv.grad = None

    ways = {f"{OURS}, size by size": by_size, "nested": nested, "masked": masked}
    if device.type == "cuda":  # it has no gradient on a CPU
        ways["flex"] = flex
    return {name: partial(step, way) for name, way in ways.items()}


def main() -> int:
    """Print the tables and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", help="images a step")
    options = parser.parse_args()
    record = Record("packed_crops", options)
    usual = [64] if record.device.type == "cuda" else [2, 4]
    name, crops = ("vit_micro", {32: 2, 16: 8}) if record.quick else ("vit_small", CROPS)
    for batch in options.batch or usual:
        rows = record.measure(
            f"{name}, {batch} images, {' + '.join(f'{n} x {side}' for side, n in crops.items())}",
            partial(runs, name, batch, crops, record.device),
            5.0 if record.quick else 60.0,
        )
        seconds = {row.provider: row.seconds for row in rows}
        if {TWO, PACKED} <= set(seconds):
            ratio = seconds[TWO] / seconds[PACKED]
            print(f"{ratio:.2f} times as fast as a pass for each size (target: {TARGET})")
        record.measure(
            f"attention alone, {batch} images",
            partial(attention_runs, batch, crops, 64 if record.quick else 384, record.device),
            3.0 if record.quick else 10.0,
        )
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
