"""Rotary positions: attention turns queries and keys by angles that the places of patches give.

Su et al. 2021, arXiv:2104.09864; along both axes of an image as in DINOv3 (Simeoni et al. 2025,
arXiv:2508.10104, section 3.2). What two patches say to each other depends on the distance between
them alone, and any number of patches will do.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.models.positions import Grid

Rotation = tuple[Tensor, Tensor]  # cosines and sines


class RotaryPositions(nn.Module):
    """Angles of patches. The state_dict has DINOv3's ``periods``.

    The image is the square from -1 to 1, whatever its size and shape, and patches lie at their
    centres. The first half of the angles turns with the row, the second with the column: by
    2 pi place / period, with periods from 1 up to nearly ``temperature``. While training the places
    may be moved, by new random numbers in every call, the same for all images of a call.

    Args:
        head_dim: width of an attention head, a multiple of 4.
        temperature: the base of the periods.
        shift_coords: s: move each axis by a number uniform in [-s, s]; None: not at all.
        jitter_coords: j: stretch each axis by a number in [1/j, j], its logarithm uniform.
        rescale_coords: r: stretch both axes alike, by a number in [1/r, r].

    Raises:
        ValueError: a width that is no such multiple.
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        temperature: float = 100.0,
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(
                f"rotary positions need heads of a width divisible by 4, got {head_dim}: change "
                "embed_dim or num_heads"
            )
        self.shift_coords, self.jitter_coords = shift_coords, jitter_coords
        self.rescale_coords = rescale_coords
        count = head_dim // 4
        exponents = torch.arange(count, dtype=torch.float64) / count
        periods = (temperature**exponents).to(torch.get_default_dtype())
        self.register_buffer("periods", periods)

    def forward(self, grid: Grid, prefix: int = 0, ids_keep: Tensor | None = None) -> Rotation:
        """Cosines and sines of a grid's patches, behind tokens that are not turned.

        Args:
            grid: (rows, columns).
            prefix: P, class and register tokens.
            ids_keep: int64 [B, K], the patches that are there; None: all L.

        Returns:
            Two of [P + L, head_dim / 2], or of [B, 1, P + K, head_dim / 2], in float32 or the wider
            dtype of the buffer.
        """
        periods = self.periods.to(torch.promote_types(self.periods.dtype, torch.float32))
        steps = (torch.arange(n, dtype=periods.dtype, device=periods.device) for n in grid)
        axes = [2 * (step + 0.5) / n - 1 for step, n in zip(steps, grid, strict=True)]
        places = torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, 1)
        places = self.moved(places) if self.training else places
        angles = (2 * math.pi * places[:, :, None] / periods).flatten(1)
        if ids_keep is not None:
            angles = angles[ids_keep][:, None]
        angles = F.pad(angles, (0, 0, prefix, 0))
        return angles.cos(), angles.sin()

    def moved(self, places: Tensor) -> Tensor:
        """Places [L, 2] moved and stretched at random, in DINOv3's order."""
        if self.shift_coords is not None:
            places = places + self.shift_coords * _uniform(places, 2)
        for limit, axes in ((self.jitter_coords, 2), (self.rescale_coords, 1)):
            if limit is not None:
                places = places * torch.exp(math.log(limit) * _uniform(places, axes))
        return places


def _uniform(like: Tensor, count: int) -> Tensor:
    """Numbers in [-1, 1)."""
    return 2 * torch.rand(count, dtype=like.dtype, device=like.device) - 1


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys [B, heads, N, D], the pairs of x[i] and x[i + D / 2], of any dtype."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
