"""From images as people have them to what an encoder takes, as the evaluation makes it."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sslfast.data import View
from sslfast.data.executors.pyav import clip_frames, normalize, resize_frame
from sslfast.data.views.draws import Draw, draw

Images: TypeAlias = Any  # a tensor, an array, a PIL image, or a list or tuple of them

# Pillow's modes of more than 8 bits a channel, which its conversion to RGB would clip.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class Preprocess:
    """Make of images the input of an encoder, as ``sslfast eval``, ``embed`` and ``report`` do.

    An image is brought to RGB (one channel is repeated, transparency dropped, EXIF orientation left
    alone), its largest centred square resized to ``size`` x ``size`` by the antialiased triangle
    filter ("bilinear", over edge pixels that are repeated), rounded to whole levels, divided by
    255, and normalised: ``(x - mean) / std`` for each channel. An image of that size already is
    only normalised.

    From the same pixels this makes what the evaluation's loader (DALI) makes, but for a level of
    255 where a resized value lies halfway between two. Decoders of JPEG differ by a few levels.

    Of a video (where the encoder takes clips) the clip in the middle is taken: ``num_frames``
    frames, every ``sampling_rate``-th; past the end of a short video its last frame is repeated.
    A video of just ``num_frames`` frames is taken for such a clip already. Frames are cropped on
    whole pixels and resized by ``torch.nn.functional.interpolate``, antialiased, as the loader of
    videos does.

    Args:
        view: what to make; of the recipe "eval".
    """

    view: View

    def __call__(self, images: Images) -> Tensor:
        """Preprocess one image or video, or several, which may differ in size.

        Args:
            images: uint8 tensors or arrays [H, W, C] or [N, H, W, C] with 1 or 3 channels, a PIL
                image, or a list of images. For clips: uint8 [T, H, W, C] or [N, T, H, W, C], a list
                of images (the frames of one video), or a list of videos.

        Returns:
            float32 [N, 3, size, size] (N is 1 for a single image), for clips [N, 3, num_frames,
            size, size]; on the device of the tensor that was given, else on the CPU.

        Raises:
            TypeError: something that is no image, or not of bytes.
            ValueError: a shape other than these.
        """
        view = self.view
        samples = _samples(images, 3 if view.num_frames is None else 4)
        frames = () if view.num_frames is None else (view.num_frames,)
        make = _image if view.num_frames is None else _clip
        result = torch.empty(len(samples), 3, *frames, view.size, view.size)
        for place, sample in zip(result, samples, strict=True):
            place.copy_(make(sample, view))
        return result.to(images.device) if isinstance(images, Tensor) else result


def _samples(given: Images, dims: int) -> list[np.ndarray]:
    """Each sample's pixels: uint8 [H, W, 3] (``dims`` 3), or [T, H, W, 3] (``dims`` 4)."""
    if isinstance(given, (list, tuple)):
        samples = [_pixels(item) for item in given]
        if dims == 4 and samples and samples[0].ndim == 3:
            samples = [_stack(samples)]
    else:
        pixels = _pixels(given)
        samples = [pixels] if pixels.ndim == dims else list(pixels)
    for sample in samples:
        if sample.ndim != dims or not all(sample.shape):
            wanted = "[H, W, C] or [N, H, W, C]" if dims == 3 else "[T, H, W, C] or [N, T, H, W, C]"
            raise ValueError(
                f"this encoder takes {'images' if dims == 3 else 'videos'}, {wanted}; got "
                f"{_form(given)}"
            )
    return samples


def _pixels(given: Images) -> np.ndarray:
    """Pixels of an image or of several alike, in RGB: uint8 [..., H, W, 3]."""
    if isinstance(given, (list, tuple)):
        return _stack([_pixels(item) for item in given])
    if hasattr(given, "convert") and hasattr(given, "mode"):  # Pillow need not be installed
        if given.mode.startswith(_DEEP_MODES):
            raise TypeError(
                f"an image of mode {given.mode} has more than 8 bits a channel: scale it to 0 ... "
                "255 first, as you want it"
            )
        if "transparency" in given.info:  # of a palette, which Pillow else warns of
            given = given.convert("RGBA")
        return np.asarray(given.convert("RGB"))
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise TypeError(
            f"preprocess takes uint8 images, PIL images or lists of them, got {_form(given)}. "
            "Images that are floats in [0, 1], channels first and of the right size take "
            "(x - encoder.mean) / encoder.std for each channel"
        )
    if array.ndim < 3 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are [..., H, W, C] with 1 or 3 channels last, got {_form(given)}; channels "
            "that come first go last by movedim(-3, -1)"
        )
    return np.broadcast_to(array, (*array.shape[:-1], 3))


def _stack(frames: list[np.ndarray]) -> np.ndarray:
    """The frames of one video."""
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError(
            f"the frames of a video have one size, got {len(frames)} of "
            f"{sorted({frame.shape for frame in frames})}"
        )
    return np.stack(frames)


def _form(given: Images) -> str:
    shape = getattr(given, "shape", None)
    name = type(given).__name__
    return name if shape is None else f"{name} {getattr(given, 'dtype', '')} {list(shape)}"


def _clip(video: np.ndarray, view: View) -> Tensor:
    """The clip of a video uint8 [T, H, W, 3]: float32 [3, num_frames, size, size]."""
    center = _center(view, *video.shape[1:3])
    numbers = list(range(len(video)))
    if len(video) != view.num_frames:
        numbers = clip_frames(len(video), view, float(center.moment[0]))
    chosen = video[np.minimum(numbers, len(video) - 1)]
    frames = [resize_frame(frame, view.size, center) for frame in chosen]
    return normalize(torch.stack(frames, 1)[None], view)[0]


def _image(image: np.ndarray, view: View) -> Tensor:
    """Crop, resize and normalise an image uint8 [H, W, 3] as DALI does: float32 [3, size, size]."""
    sides = image.shape[:2]
    center = _center(view, *sides)
    pixels = image
    # One axis after the other, each as a weighted sum of some rows.
    for side, start, end in zip(sides, center.start[0], center.end[0], strict=True):
        rows, weights = _taps(side, start * side, end * side, view.size)
        total = np.zeros((view.size, *pixels.shape[1:]), np.float32)
        for row, weight in zip(rows.T, weights.T, strict=True):
            total += weight[:, None, None] * pixels[row]
        pixels = total.swapaxes(0, 1)
    levels = np.rint(pixels).clip(0, 255)
    mean, std = (255 * np.array(x, np.float64) for x in (view.mean, view.std))
    normalized = (levels - mean.astype(np.float32)) * (1 / std).astype(np.float32)
    return torch.from_numpy(normalized).permute(2, 0, 1)


@lru_cache(maxsize=64)
def _taps(side: int, start: float, end: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows [size, K] of ``side`` make each row of the result, and their weights."""
    scale = (end - start) / size
    support = max(scale, 1.0)
    centers = start + (np.arange(size) + 0.5) * scale - 0.5
    # All rows nearer than the support: the filter is 0 at its ends.
    first = np.floor(centers - support).astype(int)[:, None] + 1
    rows = first + np.arange(math.ceil(2 * support))
    weights = np.clip(1 - np.abs(rows - centers[:, None]) / support, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return rows.clip(0, side - 1), weights.astype(np.float32)


@lru_cache(maxsize=64)
def _center(view: View, height: int, width: int) -> Draw:
    """The evaluation's crop of an image of that size."""
    ids, sizes = torch.zeros(1, dtype=torch.int64), torch.tensor([[height, width]])
    return draw((view,), ids, sizes, epoch=0, seed=0)[0]
