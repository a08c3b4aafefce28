"""The classes of a map of the embeddings can be told apart."""

import itertools

import numpy as np
import pytest
import skimage.color
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from sslfast.eval import plots

# Linear RGB as color-blind readers see it (Machado et al. 2009, severity 1).
SEEN = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("eyes", SEEN)
def test_the_ten_colors_can_be_told_apart(eyes):
    assert len(plots.PALETTE) == 10
    values = np.array([to_rgb(name) for name in plots.PALETTE])
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    seen = (linear @ np.array(SEEN[eyes]).T).clip(0, 1)
    coded = np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)
    lab = skimage.color.rgb2lab(coded)
    distances = [skimage.color.deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > (29 if eyes == "normal" else 16)


def test_sixty_classes_differ_in_color_or_marker(tmp_path, monkeypatch):
    drawn = []
    scatter = Axes.scatter

    def record(axes, *places, **how):
        drawn.append((how["color"], how["marker"]))
        return scatter(axes, *places, **how)

    monkeypatch.setattr(Axes, "scatter", record)
    plots.plot_map(torch.randn(60, 2), torch.arange(60), None, tmp_path / "map.png")
    assert len(set(drawn)) == 60
    assert len({marker for _, marker in drawn[:6]}) == 6  # neighbors differ in both
