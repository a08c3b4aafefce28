"""The largest CLIP batch with ViT-L/14 towers that fits: plain, and with the cached loss.

    python -m benchmarks.clip_batch --out results.json

Doubles the batch until it no longer fits, then bisects. A trial is one training step in bfloat16
autocast: images and tokens on the device, both towers, ClipLoss, backward, AdamW. With
``losses.cached`` all chunks are alike, so a trial encodes the first ones and puts random embeddings
in place of the rest: inputs, embeddings, and the loss over all of them stay whole.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.arguments import arguments
from benchmarks.harness.memory import peak_memory
from benchmarks.harness.record import OURS, Record
from benchmarks.harness.rows import Row
from sslfast import models
from sslfast.losses import ClipLoss, cached
from sslfast.models.layers import EPS
from sslfast.models.transformer import Block

REAL_CHUNKS = 2  # that are encoded in a trial
FINENESS = 0.03  # of the batch found


def largest(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest n in [start, most] that fits, within FINENESS; 0 if not even ``start`` does."""
    if not fits(start):
        return 0
    good, bad = start, most + 1
    while good < most:
        trial = min(2 * good, most) if bad > most else (good + bad) // 2
        if bad <= most and bad - good <= max(1, int(FINENESS * good)):
            break
        if fits(trial):
            good = trial
        else:
            bad = trial
    return good


@dataclass(frozen=True)
class Towers:
    """The sizes of both towers."""

    image: int
    patch: int
    vision: tuple[int, int, int]  # width, blocks, heads
    embed_dim: int
    tokens: int
    words: int
    text: tuple[int, int, int]


# Radford et al. 2021, arXiv:2103.00020, table 20: ViT-L/14.
LARGE = Towers(224, 14, (1024, 24, 16), 768, 77, 49408, (768, 12, 12))
TOY = Towers(16, 8, (32, 1, 2), 32, 4, 100, (32, 1, 2))


class TextTower(nn.Module):
    """A transformer over tokens; features are those of the last one."""

    def __init__(self, sizes: Towers) -> None:
        super().__init__()
        width, depth, heads = sizes.text
        self.words = nn.Embedding(sizes.words, width)
        self.positions = nn.Parameter(torch.zeros(sizes.tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.projection = nn.Linear(width, sizes.embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, D], of norm 1."""
        x = self.norm(self.blocks(self.words(tokens) + self.positions))
        return F.normalize(self.projection(x[:, -1]), dim=1)


class ImageTower(nn.Module):
    """A Vision Transformer and a projection."""

    def __init__(self, sizes: Towers) -> None:
        super().__init__()
        width, depth, heads = sizes.vision
        self.encoder = models.vit(
            img_size=sizes.image,
            patch_size=sizes.patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
        )
        self.projection = nn.Linear(width, sizes.embed_dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], of norm 1."""
        return F.normalize(self.projection(self.encoder(images)), dim=1)


class FirstChunks(nn.Module):
    """Encodes the chunks that begin where the input does; random embeddings stand for the rest."""

    def __init__(self, tower: nn.Module, inputs: Tensor, rows: int, embed_dim: int) -> None:
        super().__init__()
        self.tower, self.embed_dim = tower, embed_dim
        self.end = inputs.data_ptr() + inputs[:1].nbytes * rows

    def forward(self, chunk: Tensor) -> Tensor:
        """As the tower."""
        if chunk.data_ptr() < self.end:
            return self.tower(chunk)
        shape = len(chunk), self.embed_dim
        return F.normalize(torch.randn(shape, device=chunk.device, dtype=torch.bfloat16), dim=1)


class Trial:
    """Training steps of both towers on one device."""

    def __init__(self, sizes: Towers, device: torch.device, chunk: int) -> None:
        self.sizes, self.device, self.chunk = sizes, device, chunk
        self.image, self.text = ImageTower(sizes).to(device), TextTower(sizes).to(device)
        self.scale = nn.Parameter(torch.tensor(2.6593, device=device))
        self.parameters = [*self.image.parameters(), *self.text.parameters(), self.scale]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-6, fused=True)
        self.loss = ClipLoss()

    def inputs(self, n: int) -> tuple[Tensor, Tensor]:
        """Memory for the whole batch; random where it is read."""
        sizes, read = self.sizes, min(n, REAL_CHUNKS * self.chunk)
        shape = n, 3, sizes.image, sizes.image
        images = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        images[:read].normal_()
        tokens = torch.zeros(n, sizes.tokens, dtype=torch.int64, device=self.device)
        tokens[:read].random_(sizes.words)
        return images, tokens

    def finish(self, loss: Tensor) -> None:
        """Backward and optimiser."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def plain(self, n: int) -> None:
        """All activations kept."""
        images, tokens = self.inputs(n)
        if n > REAL_CHUNKS * self.chunk:
            images.normal_()
        with torch.autocast(self.device.type, torch.bfloat16):
            pair = self.image(images), self.text(tokens)
        self.finish(self.loss(*pair, self.scale.exp()))

    def cached(self, n: int) -> None:
        """Those of one chunk at a time."""
        given = self.inputs(n)
        rows, dim = REAL_CHUNKS * self.chunk, self.sizes.embed_dim
        towers = [
            FirstChunks(tower, x, rows, dim)
            for tower, x in zip((self.image, self.text), given, strict=True)
        ]

        def loss(image: Tensor, text: Tensor) -> Tensor:
            return self.loss(image.bfloat16(), text.bfloat16(), self.scale.exp())

        with torch.autocast(self.device.type, torch.bfloat16):
            value = cached(loss, towers, *given, chunk_size=self.chunk)
        self.finish(value)


def fits_in(
    run: Callable[[int], None], device: torch.device, limit: int | None, seen: dict[str, Any]
) -> Callable[[int], bool]:
    """Whether a step of n samples fits the device, or ``limit`` bytes; notes the peaks."""

    def fits(n: int) -> bool:
        try:
            peak = peak_memory(lambda turn: run(n), device)
        except torch.OutOfMemoryError:  # the answer, not an error
            peak = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        good = peak is not None and (limit is None or peak <= limit)
        seen[str(n)] = peak
        print(f"batch {n}: {'does not fit' if peak is None else f'{peak / 2**30:.2f} GiB'}")
        return good

    return fits


def measure(record: Record, toy: bool, limit: int | None, chunk: int, most: int) -> None:
    """Both ways of training."""
    device = record.device
    name = "toy" if toy else "ViT-L/14"
    whole = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    problem = f"largest batch, CLIP with {name} towers, {(limit or whole) / 2**30:.1f} GiB"
    towers = f"{OURS}: towers"
    if record.over(problem, towers):
        return
    with record.attempt(problem, towers):
        trial = Trial(TOY if toy else LARGE, device, chunk)
        for provider, run in (("all activations kept", trial.plain), (OURS, trial.cached)):
            if record.over(problem, provider):
                continue
            with record.attempt(problem, provider):
                seen: dict[str, Any] = {}
                fits = fits_in(run, device, limit, seen)
                found = largest(fits, min(chunk, 64), most)
                extra = {"batch": found, "peaks": seen, "chunk": chunk}
                seconds = 0.0  # of no meaning: most chunks are not encoded
                record.add([Row("clip_batch", problem, provider, seconds, extra=extra)])
                print(f"{problem}: {provider}: {found}", flush=True)


def main() -> int:
    """Print and write."""
    parser = arguments(__doc__)
    parser.add_argument("--memory", type=float, help="MiB beside weights, instead of what there is")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--most", type=int, default=1 << 20, help="samples")
    options = parser.parse_args()
    record = Record("clip_batch", options)
    toy = record.device.type == "cpu"
    limit = int(options.memory * 2**20) if options.memory else (4 << 20 if toy else None)
    measure(record, toy, limit, 16 if toy else options.chunk, 512 if toy else options.most)
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
