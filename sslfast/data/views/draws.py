"""The random numbers of augmentation, drawn outside the executor.

They come from Philox with counter (element, sample id, epoch, view), so what happens to an image in
an epoch does not depend on the batch it is in, the number of ranks or threads, or on what was run
before: resuming needs no generator's state, and every executor can be given the same draws.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sslfast.data.views.color import color_matrices
from sslfast.data.views.view import View
from sslfast.kernels.philox.reference import philox

STREAM_VIEWS = 0x0DA7A100  # view v draws from stream STREAM_VIEWS + v
CROP_TRIES = 10  # as in torchvision
# Element numbers are fixed, so turning one step on or off leaves the others' draws as they are.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(6)
GRAY, BLUR, SIGMA, SOLARIZE, CROP_Y, CROP_X = range(6, 12)
CROP_AREA, CROP_RATIO = 12, 12 + CROP_TRIES
MOMENT = 12 + 2 * CROP_TRIES
ELEMENTS = MOMENT + 4  # Philox gives four at a time


@dataclass(frozen=True)
class Draw:
    """What one view does to each of B samples. As NumPy arrays, which DALI takes.

    Attributes:
        start: float32 [B, 2], upper left corner of the crop (y, x), as fractions of the image.
        end: float32 [B, 2], its lower right corner, exclusive.
        flip: int32 [B], 1 to flip left-right.
        sigma: float32 [B], of the blur, in pixels of the view; 0 is no blur.
        matrix: float32 [B, 3, 3], the colour change (see sslfast.data.views.color).
        lift: float32 [B], the share of the mean grey value added to it.
        solarize: bool [B].
        moment: float64 [B], where a clip starts, as a fraction of the room that its video has.
    """

    start: np.ndarray
    end: np.ndarray
    flip: np.ndarray
    sigma: np.ndarray
    matrix: np.ndarray
    lift: np.ndarray
    solarize: np.ndarray
    moment: np.ndarray

    def rows(self, rows: slice) -> "Draw":
        """The draws of some of the samples."""
        return Draw(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(
    views: tuple[View, ...], sample_ids: Tensor, sizes: Tensor, *, epoch: int, seed: int
) -> list[Draw]:
    """Draw every view's parameters for a batch.

    Args:
        views: the views of a recipe.
        sample_ids: int64 [B], positions in the data set (of a sample that fills another's place:
            that one's, so that it differs from its own other appearance in the epoch).
        sizes: int64 [B, 2], height and width of each image in pixels.
        epoch: which pass over the data.
        seed: the run's seed.

    Returns:
        one Draw for each view.
    """
    # All views in one call: the cost is in the number of operations, not in their size.
    counters = torch.broadcast_tensors(
        torch.arange(ELEMENTS // 4),
        (sample_ids & 0xFFFFFFFF)[None, :, None],
        torch.tensor(epoch),
        STREAM_VIEWS + torch.arange(len(views))[:, None, None],
    )
    bits = philox(torch.stack(counters, -1), seed).flatten(2).numpy()  # [views, B, ELEMENTS]
    uniform = bits * 2.0**-32
    pixels = sizes.numpy()
    return [_view_draw(view, u, pixels) for view, u in zip(views, uniform, strict=True)]


def _view_draw(view: View, u: np.ndarray, sizes: np.ndarray) -> Draw:
    jitter = u[:, JITTER] < view.jitter_prob

    def factor(element: int, strength: float) -> np.ndarray:
        low = max(0.0, 1.0 - strength)
        return np.where(jitter, low + (1.0 + strength - low) * u[:, element], 1.0)

    matrix, lift = color_matrices(
        factor(BRIGHTNESS, view.brightness),
        factor(CONTRAST, view.contrast),
        factor(SATURATION, view.saturation),
        np.where(jitter, (2 * u[:, HUE] - 1) * view.hue, 0.0),
        u[:, GRAY] < view.gray_prob,
    )
    low, high = view.blur_sigma
    sigma = np.where(u[:, BLUR] < view.blur_prob, low + (high - low) * u[:, SIGMA], 0.0)
    start, end = _center(view, sizes) if view.crop_scale is None else _random_crop(view, u, sizes)
    return Draw(
        start=(start / sizes).astype(np.float32),
        end=(end / sizes).astype(np.float32),
        flip=(u[:, FLIP] < view.flip).astype(np.int32),
        sigma=sigma.astype(np.float32),
        matrix=matrix.astype(np.float32),
        lift=lift.astype(np.float32),
        solarize=u[:, SOLARIZE] < view.solarize_prob,
        moment=np.full(len(u), 0.5) if view.crop_scale is None else u[:, MOMENT],
    )


def _center(view: View, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torchvision's Resize and CenterCrop: whole pixels of the image resized to the view's size.

    An image whose shorter side is the view's is thus cut between its pixels, never through them.
    """
    side = sizes.min(1, keepdims=True)
    resized = view.size * sizes // side
    start = np.rint((resized - view.size) / 2) * side / view.size
    start = np.minimum(start, sizes - side)  # ``resized`` is rounded down
    return start, start + side


def _random_crop(view: View, u: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Torchvision's RandomResizedCrop: ten tries for a crop that fits, else the largest centred."""
    assert view.crop_scale is not None
    (low, high), (narrow, wide) = view.crop_scale, view.crop_ratio
    area = low + (high - low) * u[:, CROP_AREA : CROP_AREA + CROP_TRIES]
    area *= sizes.prod(1, keepdims=True)
    ratio = narrow * (wide / narrow) ** u[:, CROP_RATIO : CROP_RATIO + CROP_TRIES]
    sides = np.rint(np.sqrt(np.stack((area / ratio, area * ratio), -1)))  # [B, tries, 2]
    fits = ((sides >= 1) & (sides <= sizes[:, None])).all(-1)
    chosen = sides[np.arange(len(sides)), fits.argmax(1)]

    height, width = sizes.T
    whole = np.clip(width / height, narrow, wide)
    fallback = np.stack((np.minimum(height, width / whole), np.minimum(width, height * whole)), -1)

    any_fits = fits.max(1, keepdims=True)
    crop = np.where(any_fits, chosen, np.maximum(np.rint(fallback), 1))
    room = sizes - crop
    place = np.floor(u[:, [CROP_Y, CROP_X]] * (room + 1))
    start = np.where(any_fits, place, np.floor(room / 2))
    return start, start + crop
