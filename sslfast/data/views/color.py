"""The colour steps of a view, as one linear map of the channels, on tensors of any device.

Brightness, contrast, saturation and grey follow torchvision: blends of the image with black, with
its mean grey value, and with its grey image. Each is linear in (pixel, mean grey value), so the
four and the hue compose into

    y = M x + lift * g,    g = mean over the pixels of luma . x,    y clipped to [0, 1].

Two things differ from torchvision. Hue is a rotation of the chroma plane (YIQ) in place of a shift
of HSV's hue; it keeps the luma. Clipping happens once, at the end, not after every step: without
clipping these steps commute, so torchvision's random order has nothing else to change.
"""

import numpy as np
import torch
from torch import Tensor

from sslfast.data.views.view import View

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision and Pillow
# The FCC's YIQ: chroma in two orthogonal axes, of which a hue shift is a rotation.
_YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
_RGB = np.linalg.inv(_YIQ)
# RGB -> RGB: the luma part of a pixel, its chroma part, and the chroma turned by a quarter.
_GRAY_PART = np.outer(_RGB[:, 0], _YIQ[0])
_CHROMA_PART = np.outer(_RGB[:, 1], _YIQ[1]) + np.outer(_RGB[:, 2], _YIQ[2])
_CHROMA_TURNED = np.outer(_RGB[:, 2], _YIQ[1]) - np.outer(_RGB[:, 1], _YIQ[2])


def color_matrices(
    brightness: np.ndarray,
    contrast: np.ndarray,
    saturation: np.ndarray,
    hue: np.ndarray,
    gray: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Compose the colour steps of B samples.

    Args:
        brightness: float64 [B] factor; 1 changes nothing.
        contrast: float64 [B] factor about the mean grey value.
        saturation: float64 [B] factor about each pixel's grey value.
        hue: float64 [B], in turns.
        gray: bool [B], drop the colours last.

    Returns:
        (M, lift): float64 [B, 3, 3] and [B], of the map above.
    """
    angle = -2 * np.pi * hue  # a positive shift takes red to green, as in HSV
    # Luma kept; chroma scaled (by saturation; by 0 for grey) and turned (by hue).
    scale = np.where(gray, 0.0, saturation)
    along, across = (scale * np.cos(angle))[:, None, None], (scale * np.sin(angle))[:, None, None]
    matrix = _GRAY_PART + along * _CHROMA_PART + across * _CHROMA_TURNED
    return (contrast * brightness)[:, None, None] * matrix, (1 - contrast) * brightness


def recolor(
    images: Tensor, view: View, matrix: np.ndarray, lift: np.ndarray, solarize: np.ndarray
) -> Tensor:
    """Apply colour map, clipping, solarisation and normalisation of a view.

    The normalisation is folded into the map, and the clip limits and the inversion with it.

    Args:
        images: float32 [B, 3, H, W] in [0, 1].
        view: whose solarize_prob, mean and std are used.
        matrix: float32 [B, 3, 3].
        lift: float32 [B].
        solarize: bool [B].

    Returns:
        float32 [B, 3, H, W], a new contiguous tensor on the images' device.
    """
    mean, std = np.array(view.mean, np.float32), np.array(view.std, np.float32)
    low, high = -mean / std, (1 - mean) / std
    weights = matrix / std[:, None]
    lifts = lift[:, None] / std
    invert = solarize if view.solarize_prob > 0 else np.zeros_like(solarize)
    if images.device.type == "cpu":
        return torch.from_numpy(_on_cpu(images.numpy(), weights, lifts, low, high, invert))
    return _on_device(images, weights, lifts, low, high, invert)


def _on_cpu(
    images: np.ndarray,
    weights: np.ndarray,
    lifts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    invert: np.ndarray,
) -> np.ndarray:
    # NumPy, on this one thread: a team of OpenMP's would wait, at each step, for the very cores
    # that DALI is busy on (seen: 100 times slower).
    pixels = images.reshape(len(images), 3, -1)
    # Not a product of matrices: a sample's bits must not depend on how many there are.
    gray = (pixels.mean(2) * np.array(LUMA, np.float32)).sum(1, keepdims=True)
    out = np.matmul(weights, pixels)
    out += (lifts * gray + low)[:, :, None]
    for channel in range(3):
        plane, least, most = out[:, channel], low[channel], high[channel]
        np.clip(plane, least, most, out=plane)
        for i in invert.nonzero()[0]:
            plane[i] = np.where(plane[i] >= (least + most) / 2, least + most - plane[i], plane[i])
    return out.reshape(images.shape)


def _on_device(images: Tensor, *parameters: np.ndarray) -> Tensor:
    # Elementwise, so that neither autocast nor TF32 coarsens the colours.
    weights, lifts, low, high, invert, luma = (
        torch.from_numpy(array).to(images.device, non_blocking=True)
        for array in (*parameters, np.array(LUMA, np.float32))
    )
    gray = (images.mean((2, 3)) * luma).sum(1, keepdim=True)
    offset = (lifts * gray + low)[:, :, None, None]
    out = torch.empty_like(images)
    for channel, weight in enumerate(weights[..., None, None].unbind(1)):
        plane = torch.addcmul(offset[:, channel], images[:, 0], weight[:, 0], out=out[:, channel])
        plane.addcmul_(images[:, 1], weight[:, 1]).addcmul_(images[:, 2], weight[:, 2])
    low, high = low[:, None, None], high[:, None, None]
    torch.clamp(out, low, high, out=out)
    inverted = invert[:, None, None, None] & (out >= (low + high) / 2)
    return torch.where(inverted, low + high - out, out)
