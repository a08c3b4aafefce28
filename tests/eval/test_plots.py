"""Figures: sizes, contents where they can be read back, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslfast.data.batch import Batch
from sslfast.eval import plots


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has_color(pixels, color, tolerance=8):
    return bool((np.abs(pixels.astype(int) - np.array(color)).max(axis=-1) <= tolerance).any())


def rgb(hexadecimal):
    return tuple(int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))


def test_loss_curve(tmp_path):
    records = [{"step": i, "loss": 5.0 / (i + 1), "lr": 0.1} for i in range(50)]
    records += [{"step": 20, "knn": 0.5}, {"step": 50, "loss": float("nan")}]
    path = plots.plot_loss_curve(records, tmp_path / "new" / "loss.png")
    pixels = read(path)
    assert pixels.shape == (600, 1050, 3)
    assert has_color(pixels, rgb(plots.PALETTE[0]))


def test_smoothing_is_a_centred_mean_that_keeps_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    np.testing.assert_allclose(plots._smooth(values), [1.5, 1.5, np.nan, 4.5, 4.5])


@pytest.mark.parametrize("records", [[], [{"step": 1}], [{"step": 1, "loss": float("nan")}]])
def test_loss_curve_without_losses(tmp_path, records):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_loss_curve(records, tmp_path / "loss.png")


def test_views_are_drawn_in_their_own_colours(tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    colors = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.6, 0.3]])
    normalized = (colors - torch.tensor(mean)) / torch.tensor(std)
    views = tuple(c.view(1, 3, 1, 1).expand(4, 3, 8, 8) for c in normalized)
    path = plots.plot_views(
        Batch(views, torch.arange(4)), tmp_path / "views.png", mean=mean, std=std
    )
    pixels = read(path)
    for color in colors:
        assert has_color(pixels, (color * 255).round().int().tolist(), tolerance=2)


def test_views_grid_grows_with_samples_and_takes_grey_and_mixed_sizes(tmp_path):
    torch.manual_seed(0)
    views = [torch.rand(20, 1, 28, 28), torch.rand(20, 1, 12, 12)]
    few = read(plots.plot_views(views, tmp_path / "few.png", samples=8))
    many = read(plots.plot_views(views, tmp_path / "many.png", samples=20))
    assert few.shape[1] == many.shape[1] == 1320
    assert many.shape[0] > 2.5 * few.shape[0]
    assert read(plots.plot_views(views[0], tmp_path / "one.png")).std() > 10


def test_views_refused(tmp_path):
    with pytest.raises(ValueError, match=r"view 2 must be \[B, 1 or 3, H, W\].*\[4, 2, 8, 8\]"):
        plots.plot_views([torch.rand(4, 3, 8, 8), torch.rand(4, 2, 8, 8)], tmp_path / "x.png")
    for nothing in ([], torch.rand(0, 3, 8, 8)):
        with pytest.raises(ValueError, match="no view"):
            plots.plot_views(nothing, tmp_path / "x.png")


def test_map_shows_every_class(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 12
    points = torch.randn(120, 2, generator=generator)
    # Names that matplotlib would hide (underscore) or read as mathematics (dollars).
    classes = [f"_${i}" for i in range(12)]
    path = plots.plot_map(points, labels, classes, tmp_path / "map.png")
    pixels = read(path)
    assert pixels.shape == (900, 1200, 3)
    # Marks are translucent over white.
    for color in plots.PALETTE:
        blend = [round(0.75 * channel + 0.25 * 255) for channel in rgb(color)]
        assert has_color(pixels, blend)


def test_map_takes_names_that_cannot_be_printed(tmp_path):
    # A byte that is no UTF-8, as Python reads it from a folder's name, and control characters.
    path = plots.plot_map(
        torch.randn(4, 2), torch.arange(4) % 2, ["a\udcff", "b\x1b[31m\x07"], tmp_path / "m.png"
    )
    assert read(path).ndim == 3


def test_map_without_labels_and_with_too_many_for_a_legend(tmp_path):
    points = torch.randn(200, 2)
    assert read(plots.plot_map(points, None, None, tmp_path / "a.png")).shape == (900, 975, 3)
    path = plots.plot_map(points, torch.arange(200), None, tmp_path / "b.png")
    assert read(path).shape == (900, 975, 3)


def test_map_refused(tmp_path):
    points = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"points must be \[N, 2\]"):
        plots.plot_map(torch.zeros(3, 3), None, None, tmp_path / "x.png")
    with pytest.raises(ValueError, match="3 points but labels"):
        plots.plot_map(points, torch.arange(2), None, tmp_path / "x.png")
    with pytest.raises(ValueError, match="labels run from 0 to 2, but 2 classes have names"):
        plots.plot_map(points, torch.arange(3), ["a", "b"], tmp_path / "x.png")


def test_same_data_same_bytes(tmp_path):
    records = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(5)]
    first, second = (plots.plot_loss_curve(records, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_rejection_draws_curves_and_bounds(tmp_path):
    curves = {"by variance": torch.linspace(0.5, 0.8, 50), "ideal": np.linspace(0.5, 1.0, 50)}
    pixels = read(plots.plot_rejection(curves, tmp_path / "rejection.png"))
    assert pixels.shape == (600, 1050, 3)
    assert has_color(pixels, rgb(plots.PALETTE[0]))
    assert not has_color(pixels, rgb(plots.PALETTE[1]))  # bounds take no colour
