"""Figures of a run, written as PNG: loss, augmented views, map of the embeddings, rejection.

Everything goes through matplotlib's objects: no pyplot, no global state, safe in any thread.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast._extras import require
from sslfast._printable import printable
from sslfast.data.batch import Batch

# Ten colours that stay apart, for colour-blind readers too, found by a search: any two differ by 29
# (CIEDE2000), and by 16 as protanopes, deuteranopes and tritanopes see them (Machado et al. 2009).
PALETTE = (
    "#0095ff", "#800000", "#aabf00", "#6a15ff", "#ea4080",
    "#006a55", "#956a15", "#40eabf", "#2a2a40", "#d4bfea",
)  # fmt: skip
# With the marker as well, 60 classes look different.
MARKERS = ("o", "^", "s", "D", "v", "P")
_INK = "#333333"
_DPI = 150


def plot_loss_curve(
    records: Iterable[Mapping[str, Any]], path: str | Path, *, title: str = "Pre-training loss"
) -> Path:
    """Draw the loss over the steps, as logged and smoothed.

    Args:
        records: those with "step" and "loss" are drawn, in order of steps (metrics.jsonl); others
            are left out. A loss that is not finite leaves a gap.
        path: the PNG to write; its folder is created.
        title: above the axes.

    Returns:
        ``path``.

    Raises:
        ValueError: no record has a step and a finite loss.
        MissingExtra: matplotlib is not installed.
    """
    points = sorted(
        (float(record["step"]), float(record["loss"]))
        for record in records
        if record.get("step") is not None and record.get("loss") is not None
    )
    step, loss = np.array(points).reshape(-1, 2).T
    if not np.isfinite(loss).any():
        raise ValueError("no record has a 'step' and a finite 'loss': nothing to draw")
    figure, axes = _figure(7.0, 4.0)
    axes.plot(step, loss, color=PALETTE[0], alpha=0.35, linewidth=1.0, label="logged")
    axes.plot(step, _smooth(loss), color=PALETTE[0], linewidth=2.0, label="smoothed")
    axes.set(title=title, xlabel="Step", ylabel="Loss")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return _save(figure, path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The centred moving mean over about a twentieth of the curve; gaps stay gaps."""
    half = max(1, len(values) // 40)
    smooth = np.full(len(values), math.nan)
    for i in np.flatnonzero(np.isfinite(values)):
        window = values[max(0, i - half) : i + half + 1]
        smooth[i] = window[np.isfinite(window)].mean()
    return smooth


def _frames(videos: Tensor, count: int) -> Tensor:
    """Frames of videos [B, C, T, H, W], evenly spaced: images [B * count, C, H, W]."""
    chosen = torch.arange(count, device=videos.device) * videos.shape[2] // count
    return videos[:, :, chosen].transpose(1, 2).flatten(0, 1)


def plot_views(
    views: Batch | Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    samples: int = 16,
    columns: int = 8,
    title: str = "Augmented views",
    names: Sequence[str] | None = None,
) -> Path:
    """Draw a grid of images: a column a sample, its views below each other.

    Of videos, a sample has the width of the grid: a column a frame.

    Args:
        views: float [B, C, H, W] with C 1 or 3, or videos [B, C, T, H, W], one tensor a view, or
            the batch that has them.
        path: the PNG to write; its folder is created.
        mean: what the recipe subtracted, one number or one a channel.
        std: what it then divided by: the image is ``view * std + mean``, clipped to [0, 1].
        samples: draw at most this many.
        columns: samples in a row of the grid; of videos, frames, evenly spaced.
        title: above the grid.
        names: of the views; None: "view 1", "view 2" ...

    Returns:
        ``path``.

    Raises:
        ValueError: no view, no sample, or a view that is not [B, 1 or 3, H, W] or
            [B, 1 or 3, T, H, W].
        MissingExtra: matplotlib is not installed.
    """
    nest = views.views if isinstance(views, Batch) else views
    nest = [nest] if isinstance(nest, Tensor) else list(nest)
    if any(view.dim() == 5 for view in nest):
        columns = min([columns, *(view.shape[2] for view in nest)])
        nest = [_frames(view[:samples], columns) for view in nest]
        samples *= columns
    images = [_images(view, number, mean, std) for number, view in enumerate(nest, start=1)]
    count = min([samples, *(len(view) for view in images)])
    if not images or count < 1:
        raise ValueError("there is no view to draw")
    columns = min(columns, count)
    height, width = (max(view.shape[axis] for view in images) for axis in (1, 2))
    gap = max(1, width // 16)

    # White canvas; smaller views (multi-crop) stand in the middle of their cell.
    blocks = math.ceil(count / columns)
    block_height = len(images) * (height + gap) + 2 * gap
    canvas = np.ones((blocks * block_height - 3 * gap, columns * (width + gap) - gap, 3))
    ticks = []
    for block in range(blocks):
        for number, view in enumerate(images):
            top = block * block_height + number * (height + gap)
            ticks.append((top + height / 2 - 0.5, names[number] if names else f"view {number + 1}"))
            for column, image in enumerate(
                view[block * columns : min(count, (block + 1) * columns)]
            ):
                y = top + (height - image.shape[0]) // 2
                x = column * (width + gap) + (width - image.shape[1]) // 2
                canvas[y : y + image.shape[0], x : x + image.shape[1]] = image

    inches = max(4.0, columns)
    figure, axes = _figure(inches + 0.8, inches * canvas.shape[0] / canvas.shape[1] + 0.5)
    axes.imshow(canvas, interpolation="nearest" if width < 128 else "antialiased")
    axes.set(title=title, xticks=[])
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _save(figure, path)


def _images(view: Tensor, number: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """One view as float [B, H, W, 3] in [0, 1]."""
    if view.dim() != 4 or view.shape[1] not in (1, 3):
        raise ValueError(f"view {number} must be [B, 1 or 3, H, W] to draw, got {list(view.shape)}")
    scale, shift = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (std, mean))
    pixels = (view.detach().cpu().float() * scale + shift).nan_to_num(0.0).clamp(0.0, 1.0)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def plot_map(
    points: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | None,
    classes: Sequence[str] | None,
    path: str | Path,
    *,
    title: str = "Map of the embeddings",
) -> Path:
    """Draw embed_2d()'s points, coloured by label.

    The legend names up to 60 classes, by colour and marker; more share colours and have none.

    Args:
        points: [N, 2].
        labels: integers [N], or None for one colour.
        classes: the name of label 0, 1, ...; None: the numbers themselves.
        path: the PNG to write; its folder is created.
        title: above the axes.

    Returns:
        ``path``.

    Raises:
        ValueError: points that are not [N, 2], labels of another length, or a label without a name.
        MissingExtra: matplotlib is not installed.
    """
    places = np.asarray(points, dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or len(places) == 0:
        raise ValueError(f"points must be [N, 2] with N >= 1, got {list(places.shape)}")
    numbers = np.zeros(len(places), dtype=np.int64) if labels is None else np.asarray(labels)
    if numbers.shape != (len(places),):
        raise ValueError(f"there are {len(places)} points but labels {list(numbers.shape)}")
    present = np.unique(numbers)
    if (
        labels is not None
        and classes is not None
        and not 0 <= present[0] <= present[-1] < len(classes)
    ):
        raise ValueError(
            f"labels run from {present[0]} to {present[-1]}, but {len(classes)} classes have names"
        )
    named = labels is not None and len(present) <= len(PALETTE) * len(MARKERS)

    figure, axes = _figure(8.0 if named else 6.5, 6.0)
    size = float(np.clip(20000 / len(places), 5.0, 36.0))
    for position, label in enumerate(present):
        chosen = places[numbers == label]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=size,
            color=PALETTE[position % len(PALETTE)],
            marker=MARKERS[(position + position // len(PALETTE)) % len(MARKERS)],
            alpha=0.75,
            linewidths=0,
            # matplotlib reads dollars as mathematics.
            label=printable(str(label if classes is None else classes[label])).replace("$", r"\$"),
        )
    axes.set(title=title, xlabel="Dimension 1", ylabel="Dimension 2", xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    if named:
        axes.legend(
            *_legend_entries(axes),
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            ncols=math.ceil(len(present) / 20),
            frameon=False,
            handletextpad=0.2,
            markerscale=math.sqrt(40.0 / size),
        )
    return _save(figure, path)


def plot_rejection(
    curves: Mapping[str, Tensor | np.ndarray],
    path: str | Path,
    *,
    title: str = "Accuracy against the rejected share",
) -> Path:
    """Draw the accuracy of what is kept when the most uncertain samples are rejected.

    Args:
        curves: the accuracies [N] by name, from nothing rejected to all but one sample
            (``RejectionCurve.accuracy``); those called "ideal" and "random" are dashed bounds.
        path: the PNG to write; its folder is created.
        title: above the axes.

    Returns:
        ``path``.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figure, axes = _figure(7.0, 4.0)
    bounds = {"ideal": _INK, "random": "#999999"}
    colors = iter(PALETTE)
    for name, accuracy in curves.items():
        share = np.arange(len(accuracy)) / len(accuracy)
        style = "--" if name in bounds else "-"
        color = bounds[name] if name in bounds else next(colors)
        axes.plot(share, np.asarray(accuracy), style, color=color, linewidth=1.5, label=name)
    axes.set(title=title, xlabel="Rejected share", ylabel="Accuracy of the others", xlim=(0, 1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, title="Order of rejection")
    return _save(figure, path)


def _legend_entries(axes: Any) -> tuple[list[Any], list[str]]:
    """All of them: by itself, matplotlib leaves out names that start with an underscore."""
    return list(axes.collections), [str(artist.get_label()) for artist in axes.collections]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes."""
    library = require("matplotlib.figure", extra="train", purpose="drawing figures")
    figure = library.Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set(fontsize=13, color=_INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=11, color=_INK)
    axes.tick_params(colors=_INK, labelsize=10)
    return figure, axes


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version stamp, equal data gives equal bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
