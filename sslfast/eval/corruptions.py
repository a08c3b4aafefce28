"""Ways to spoil images: noise, blur, lost contrast, a patch that hides a part.

Each takes images float [N, C, H, W] in [0, 1], a strength (0 changes nothing), the samples' ids
int64 [N] on the same device, and a seed, and returns images like them, in [0, 1]. What an image
gets depends on its id and the seed alone, not on the batch it is in. Lengths are parts of the
image's side, so that small and large images are spoilt alike.

Noise, blur and contrast are of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), but
for their strengths; hidden parts are of Cutout (DeVries and Taylor 2017, arXiv:1708.04552).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.data import Batch, View
from sslfast.kernels.philox.op import random_bits

Corruption = Callable[[Tensor, float, Tensor, int], Tensor]

STREAM_CORRUPTIONS = 0xC0440000  # kind k draws from stream STREAM_CORRUPTIONS + k
_KIND, _NOISE, _OCCLUSION = range(3)


def gaussian_noise(images: Tensor, strength: float, sample_ids: Tensor, seed: int = 0) -> Tensor:
    """Add normal noise of deviation ``strength`` to every value."""
    pairs = math.ceil(images[0].numel() / 2)
    first, second = _uniform(sample_ids, seed, _NOISE, 2 * pairs).chunk(2, 1)
    # Box and Muller: two uniform numbers make two normal ones. 1 - u is never 0.
    radius, angle = (-2 * (1 - first).log()).sqrt(), 2 * math.pi * second
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    noise = normal[:, : images[0].numel()].reshape(images.shape)
    return (images + strength * noise.to(images.dtype)).clamp(0, 1)


def blur(images: Tensor, strength: float, sample_ids: Tensor, seed: int = 0) -> Tensor:
    """Blur by a Gaussian whose deviation is ``strength`` times the shorter side."""
    channels, *sides = images.shape[1:]
    sigma = strength * min(sides)
    if sigma == 0:
        return images
    radius = math.ceil(3 * sigma)
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = (-0.5 * (places / sigma) ** 2).exp()
    kernel = (weights / weights.sum()).expand(channels, 1, 1, -1)
    rows = F.pad(images, (radius, radius, 0, 0), mode="replicate")
    rows = F.conv2d(rows, kernel, groups=channels)
    columns = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(columns, kernel.mT, groups=channels).clamp(0, 1)


def low_contrast(images: Tensor, strength: float, sample_ids: Tensor, seed: int = 0) -> Tensor:
    """Bring every value nearer to the mean of its image and channel; at 1 nothing else is left."""
    return images.lerp(images.mean((2, 3), keepdim=True), strength).clamp(0, 1)


def occlusion(images: Tensor, strength: float, sample_ids: Tensor, seed: int = 0) -> Tensor:
    """Hide a part of the area, ``strength``, under a gray patch of the image's shape, anywhere."""
    inside = images.new_ones(len(images), 1, 1, 1, dtype=torch.bool)
    for axis, start in zip((2, 3), _uniform(sample_ids, seed, _OCCLUSION, 2).T, strict=True):
        side = images.shape[axis]
        length = round(math.sqrt(strength) * side)
        first = (start * (side - length + 1)).long()[:, None]
        places = torch.arange(side, device=images.device)
        covered = (places >= first) & (places < first + length)
        inside = inside & covered.unflatten(0, (-1, 1, 1)).movedim(-1, axis)
    return torch.where(inside, 0.5, images)


# Each with a strength that a person sees at once, and still names what is shown.
MIXTURE: tuple[tuple[Corruption, float], ...] = (
    (gaussian_noise, 0.1),
    (blur, 0.06),
    (low_contrast, 0.75),
    (occlusion, 0.3),
)


def corrupt(images: Tensor, sample_ids: Tensor, seed: int = 0) -> Tensor:
    """Spoil each image in one way of ``MIXTURE``, drawn for its id.

    Args:
        images: float [N, C, H, W] in [0, 1].
        sample_ids: int64 [N], on the same device.
        seed: of the draw.

    Returns:
        Images like them.
    """
    chosen = (_uniform(sample_ids, seed, _KIND, 1)[:, 0] * len(MIXTURE)).long()
    spoilt = images.clone()
    for number, (corruption, strength) in enumerate(MIXTURE):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            spoilt[rows] = corruption(images[rows], strength, sample_ids[rows], seed)
    return spoilt


def corrupt_batch(batch: Batch, view: View, seed: int = 0) -> Batch:
    """``corrupt`` the normalised images of a batch of one view, as the loader makes it.

    Args:
        batch: its view is float [N, C, H, W].
        view: what made it: its mean and deviation are undone, and done again.
        seed: of the draw.
    """
    (images,) = batch.views
    mean, std = (images.new_tensor(x).reshape(-1, 1, 1) for x in (view.mean, view.std))
    pixels = (images * std + mean).clamp(0, 1)  # rounding leaves the range
    spoilt = corrupt(pixels, batch.sample_ids.to(images.device), seed)
    return replace(batch, views=((spoilt - mean) / std,))


def _uniform(sample_ids: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Numbers in [0, 1) of each sample: float64 [N, count]."""
    step = torch.zeros((), dtype=torch.int64, device=sample_ids.device)
    bits = random_bits(sample_ids, step, seed, STREAM_CORRUPTIONS + stream, count)
    return bits.double() * 2.0**-32
