"""Images of several sizes in one matrix of tokens: no padding, and one product for all.

Linear layers, norms and MLPs work token by token and do not care whose token it is. Only attention
and what belongs to a whole image must know where the images lie.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslfast.models.rope import Rotation


class Packing(NamedTuple):
    """How packed tokens [S, D] lie: all images of the first size, then of the next ...

    Attributes:
        shapes: (B, N) of each size: images, and tokens of an image; S is the sum of B N.
        rotations: how attention turns the tokens of each size; None: not at all.
    """

    shapes: tuple[tuple[int, int], ...]
    rotations: tuple[Rotation | None, ...]

    @classmethod
    def of(
        cls, tokens: Sequence[Tensor], rotations: Sequence[Rotation | None] | None = None
    ) -> "Packing":
        """Of tokens [B, N, D] for each size."""
        shapes = tuple((t.shape[0], t.shape[1]) for t in tokens)
        return cls(shapes, tuple(rotations or [None] * len(shapes)))

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Packed tokens [S, D] -> [B, N, D] for each size, without a copy."""
        parts = packed.split([images * length for images, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def per_token(self, numbers: Tensor) -> Tensor:
        """One number for each image, in order, [sum of B] -> one for each token, [S, 1]."""
        parts = numbers.split([images for images, _ in self.shapes])
        rows = zip(parts, self.shapes, strict=True)
        return torch.cat([part[:, None].expand(shape).flatten() for part, shape in rows])[:, None]


def pack(tokens: Sequence[Tensor]) -> Tensor:
    """Tokens [B, N, D] for each size -> [S, D]; those of one size alone are not copied."""
    rows = [t.flatten(0, 1) for t in tokens]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
