"""Spoilt images: what each kind does, and that it depends on the image's id alone."""

import pytest
import torch

from sslfast.data import Batch, View
from sslfast.eval.corruptions import (
    MIXTURE,
    blur,
    corrupt,
    corrupt_batch,
    gaussian_noise,
    low_contrast,
    occlusion,
)

KINDS = [kind for kind, _ in MIXTURE]
IDS = torch.arange(40)


def images(count: int = 40, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_of_every_kind(kind) -> None:
    pixels = images(height=12, width=17)
    assert torch.equal(kind(pixels, 0.0, IDS, 0), pixels)
    changes = []
    for strength in (0.1, 0.5):
        spoilt = kind(pixels, strength, IDS, 0)
        assert (spoilt.shape, spoilt.dtype) == (pixels.shape, pixels.dtype)
        assert 0 <= float(spoilt.min()) <= float(spoilt.max()) <= 1
        changes.append(float((spoilt - pixels).abs().mean()))
        alone = kind(pixels[7:9], strength, IDS[7:9], 0)
        torch.testing.assert_close(alone, spoilt[7:9])
    assert 0 < changes[0] < changes[1]


def test_noise_is_normal_and_drawn_by_id_and_seed() -> None:
    gray = torch.full((40, 3, 15, 15), 0.5)  # an odd number of values
    noise = gaussian_noise(gray, 0.1, IDS) - 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float((noise.abs() < 0.1).float().mean()) == pytest.approx(0.6827, abs=0.01)
    assert float(torch.corrcoef(noise[:2].flatten(1))[0, 1]) == pytest.approx(0, abs=0.15)
    assert not torch.equal(gaussian_noise(gray, 0.1, IDS, 1) - 0.5, noise)


def test_blur_spreads_a_point_as_a_gaussian() -> None:
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    spread = blur(point, 2 / 33, IDS[:1])[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    along = spread.sum(0)
    assert float((along * (torch.arange(33) - 16) ** 2).sum()) == pytest.approx(4, rel=0.02)
    torch.testing.assert_close(spread, along[:, None] * along)
    flat = torch.full((1, 3, 5, 9), 0.7)  # narrower than the filter
    torch.testing.assert_close(blur(flat, 0.5, IDS[:1]), flat)


def test_low_contrast_keeps_means_and_shrinks_deviations() -> None:
    pixels = images()
    spoilt = low_contrast(pixels, 0.75, IDS)
    torch.testing.assert_close(spoilt.mean((2, 3)), pixels.mean((2, 3)))
    torch.testing.assert_close(spoilt.std((2, 3)), 0.25 * pixels.std((2, 3)))


def test_occlusion_hides_its_part_somewhere() -> None:
    hidden = (occlusion(torch.ones(40, 3, 16, 16), 0.25, IDS) == 0.5).all(1)
    assert hidden.sum((1, 2)).tolist() == [64] * 40  # squares of 8 x 8
    assert all(8 == image.any(0).sum() == image.any(1).sum() for image in hidden)
    corners = {tuple(image.nonzero()[0].tolist()) for image in hidden}
    assert len(corners) > 25
    assert {y for y, _ in corners} == set(range(9))


def test_each_image_is_spoilt_in_one_way_of_its_own() -> None:
    pixels = images()
    spoilt = corrupt(pixels, IDS)
    alike = torch.stack(
        [
            torch.isclose(spoilt, kind(pixels, strength, IDS, 0)).flatten(1).all(1)
            for kind, strength in MIXTURE
        ]
    )
    assert alike.sum(0).tolist() == [1] * 40
    assert alike.any(1).all()
    assert not torch.equal(corrupt(pixels, IDS, seed=1), spoilt)
    torch.testing.assert_close(corrupt(pixels[30:], IDS[30:]), spoilt[30:])


def test_of_normalized_views() -> None:
    view = View(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    pixels = images()
    batch = Batch(((pixels - mean) / std,), IDS, labels=IDS)
    found = corrupt_batch(batch, view)
    torch.testing.assert_close(found.views[0] * std + mean, corrupt(pixels, IDS))
    assert found.labels is IDS
