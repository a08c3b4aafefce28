import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from sslfast.data import View
from sslfast.data.views import color
from sslfast.data.views.color import LUMA, color_matrices, recolor

PLAIN = View(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def change(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, gray=False, view=PLAIN):
    def all_of(value):
        return np.full(len(images), value)

    matrix, lift = color_matrices(
        all_of(brightness),
        all_of(contrast),
        all_of(saturation),
        all_of(hue),
        all_of(gray),
    )
    on = all_of(view.solarize_prob > 0)
    return recolor(images, view, *map(np.float32, (matrix, lift)), on)


def luma(images):
    return (images * torch.tensor(LUMA)[:, None, None]).sum(1)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 16, 16, generator=generator)


def test_neutral_factors_change_nothing(images):
    torch.testing.assert_close(change(images), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_factors_mean_what_they_mean_in_pillow(pictures, name, enhance, factor):
    # Pillow's ImageEnhance is what torchvision's ColorJitter calls on images.
    for picture in pictures[::8]:
        expected = torch.frombuffer(
            bytearray(enhance(Image.fromarray(picture)).enhance(factor).tobytes()),
            dtype=torch.uint8,
        ).view(32, 32, 3)
        given = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
        ours = change(given, **{name: factor})[0].permute(1, 2, 0) * 255
        # Pillow rounds the grey values, and cuts off the result, to whole levels.
        assert (ours - expected).abs().max() <= 1 + factor


def test_grey_drops_the_colour_and_keeps_the_luma(images):
    gray = change(images, gray=True)
    assert (gray - gray[:, :1]).abs().max() < 1e-6
    torch.testing.assert_close(luma(gray), luma(images), atol=1e-6, rtol=0)


def test_hue_turns_the_chroma_and_keeps_the_luma(images):
    soft = 0.5 + 0.2 * (images - 0.5)  # far from clipping
    turned = change(soft, hue=0.1)
    assert (turned - soft).abs().max() > 0.02
    torch.testing.assert_close(luma(turned), luma(soft), atol=1e-5, rtol=0)
    back = change(turned, hue=-0.1)
    torch.testing.assert_close(back, soft, atol=1e-5, rtol=0)
    torch.testing.assert_close(change(soft, hue=0.5), change(soft, hue=-0.5), atol=1e-5, rtol=0)


def test_hue_has_the_sense_of_hsv():
    # A third of a turn takes red towards green, as in HSV.
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    assert change(red, hue=1 / 3)[0, :, 0, 0].argmax() == 1
    assert change(red, hue=-1 / 3)[0, :, 0, 0].argmax() == 2


def test_results_are_clipped(images):
    bright = change(images, brightness=3.0)
    assert bright.max() == 1
    assert bright.min() >= 0


def test_solarise_inverts_the_upper_half(images):
    view = View(solarize_prob=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    expected = torch.where(images >= 0.5, 1 - images, images)
    torch.testing.assert_close(change(images, view=view), expected, atol=2e-6, rtol=0)


def test_normalisation_comes_last(images):
    view = View(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    mean, std = (torch.tensor(x)[:, None, None] for x in (view.mean, view.std))
    torch.testing.assert_close(change(images, view=view), (images - mean) / std, atol=1e-5, rtol=0)


def test_the_form_for_gpus_agrees(images, monkeypatch):
    view = View(solarize_prob=0.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    factors = np.array([[1.4, 0.6, 1], [0.5, 1.7, 1], [0.2, 1.5, 1], [0.1, -0.1, 0]])
    matrix, lift = map(np.float32, color_matrices(*factors, np.array([False, False, True])))
    given = (images, view, matrix, lift, np.array([True, False, True]))
    expected = recolor(*given)
    monkeypatch.setattr(
        color, "_on_cpu", lambda pixels, *rest: color._on_device(images, *rest).numpy()
    )
    torch.testing.assert_close(recolor(*given), expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(recolor(*given), expected, atol=1e-5, rtol=0)


def test_autocast_does_not_touch_the_colours(images):
    expected = change(images, saturation=0.3, hue=0.2, contrast=1.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change(images, saturation=0.3, hue=0.2, contrast=1.4), expected)
