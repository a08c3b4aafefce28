"""What a run achieved: a table against two baselines, figures, and one page with all of it."""

import base64
import html
import json
import logging
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from sslfast import data, methods
from sslfast._arguments import PositiveInt, checked
from sslfast._printable import printable
from sslfast.data import Batch, Recipe, Source, View
from sslfast.eval import Features, embed_2d, knn_accuracy
from sslfast.eval.linear import LinearProbe
from sslfast.eval.plots import plot_loss_curve, plot_map, plot_rejection, plot_views
from sslfast.eval.rejection import probe_curves, rejection_curve
from sslfast.methods.base import Context
from sslfast.training import checkpoint
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.evaluation import FinishedRun
from sslfast.training.pipeline import build_recipe
from sslfast.training.run_folder import RunFolderError
from sslfast.training.run_log import read_metrics
from sslfast.training.storage import write_text
from sslfast.training.trainer import build_method

logger = logging.getLogger("sslfast")

LABELS_PER_CLASS = 100
LABEL_DRAWS = 5  # one draw of 100 labels moves the accuracy by some points
K = 20
_MAP_POINTS = 2000
MOST_PIXELS = 1 << 30  # of all samples together: 4 GiB
_SAMPLES = {"image": 16, "video": 4}


@dataclass(frozen=True)
class Score:
    """One row of the table: accuracies on the test split, in [0, 1]."""

    features: str
    knn: float
    linear: float


@dataclass(frozen=True)
class Rejection:
    """What the predicted variance says of the linear probe's errors.

    On every test image twice, as it is and corrupted (``sslfast.eval.corruptions``).

    Attributes:
        accuracy: of the probe on the images as they are, in [0, 1].
        accuracy_corrupted: on the others.
        areas: mean accuracy over all rejected shares, by what is rejected first: the largest
            "variance", the least "confidence" of the probe, errors ("ideal"), any ("random").
        corrupted_rejected: the corrupted images' part of the half with the largest variance.
    """

    accuracy: float
    accuracy_corrupted: float
    areas: dict[str, float]
    corrupted_rejected: float


@dataclass(frozen=True)
class Report:
    """What ``report`` found; also written as report.json.

    Attributes:
        data: the data set.
        scores: random initialisation, pre-trained, raw pixels; empty without labels to test on.
        labels_per_class: of the linear probe, whose accuracy is the mean of five draws of them.
        k: neighbours of the kNN.
        figures: file names of the figures, in the run's folder.
        rejection: of a run with the head "uncertainty" and labels to test on; else None, and left
            out of the file.
    """

    data: str
    scores: list[Score]
    labels_per_class: int
    k: int
    figures: list[str]
    rejection: Rejection | None = None


@checked
def report(
    run: FinishedRun, labels_per_class: PositiveInt | None = None, k: PositiveInt = K
) -> Report:
    """Evaluate a run and write report.json, loss.png, views.png, map.png and report.html.

    Of a run with the head "uncertainty", rejection.png too.

    Args:
        run: a finished one.
        labels_per_class: for the linear probe (the mean of five draws); None: 100, or as many as
            the rarest class has.
        k: neighbours of the kNN.

    Raises:
        ValueError: a class has fewer labels than asked for.
    """
    if run.settings["data"] is None:
        raise RunFolderError(f"a report is of a run's folder: {run.weights} is an encoder alone")
    config = TrainConfig(**run.settings)
    folder = run.folder.path
    train = run.dataset(config.data, "train")
    test = run.dataset(config.data, "test") if run.has_split(config.data, "test") else train

    encoder = run.encoder()
    test_features = run.features(encoder, test)
    plot_loss_curve(read_metrics(run.folder.metrics), folder / "loss.png")
    preview(config, folder / "views.png")
    _draw_map(test_features, test.classes, folder / "map.png")

    scores: list[Score] = []
    labels = labels_per_class or LABELS_PER_CLASS
    counts = _samples_per_class(train)
    if test is not train and counts and _samples_per_class(test):
        if labels_per_class is None:
            labels = min(labels, *counts.values())
        features = {
            "random initialisation": (run.random_encoder(), None),
            "pre-trained": (encoder, test_features),
            "raw pixels": (None, None),
        }
        view = build_recipe(config, methods.get(config.method)).views[0]
        numbers = 3 * (view.num_frames or 1) * view.size**2
        if (len(train) + len(test)) * numbers > MOST_PIXELS:
            logger.warning("raw pixels are left out: %d of each sample are too many", numbers)
            del features["raw pixels"]
        for name, (model, known) in features.items():
            pair = run.features(model, train), known or run.features(model, test)
            fitted = [LinearProbe.fit(pair[0], labels, seed=seed) for seed in range(LABEL_DRAWS)]
            linear = fmean(probe.score(pair[1]).accuracy for probe in fitted)
            scores.append(Score(name, knn_accuracy(*pair, k=k), linear))
            if name == "pre-trained":
                probes = fitted

    figures = ["loss.png", "views.png", "map.png"]
    rejection = None
    if scores and view.num_frames is None and run.uncertainty(test_features) is not None:
        corrupted = run.features(encoder, test, corrupted=True)
        figures.append("rejection.png")
        rejection = _rejection(run, probes, test_features, corrupted, folder / figures[-1])
    found = Report(config.data, scores, labels, k, figures, rejection)
    facts = {name: value for name, value in asdict(found).items() if value is not None}
    write_text(folder / "report.json", json.dumps(facts, indent=2) + "\n")
    write_text(folder / "report.html", _page(found, run.settings, folder))
    return found


@checked
def preview(config: TrainConfig, path: Path, samples: PositiveInt | None = None) -> Path:
    """Draw augmented views of the training images (or videos), as the method would see them.

    Args:
        config: data, method, recipe and seed are looked at.
        path: the PNG to write.
        samples: how many; None: 16 images, or 4 videos.
    """
    batch, view = _first_batch(config, samples)
    return plot_views(batch, path, mean=view.mean, std=view.std, samples=len(batch))


@checked
def preview_run(run: FinishedRun, path: Path, samples: PositiveInt | None = None) -> Path:
    """Draw what a run's method does with training images: original, masked, reconstructed ...

    Of videos, the same in rows of frames.

    The masks are those of the step after the last one. A method that has no such pictures gets its
    augmented views drawn.

    Args:
        run: a finished one, with its last checkpoint.
        path: the PNG to write.
        samples: how many; None: 16 images, or 4 videos.

    Raises:
        CheckpointError: the checkpoint is damaged.
        RunFolderError: there is none.
    """
    config = TrainConfig(**run.settings)
    state = checkpoint.load_newest(run.folder.checkpoints)
    if state is None:
        raise RunFolderError(f"{run.folder.path} has no checkpoint: its method cannot be rebuilt")
    method = build_method(config, run.device, run.folder).eval()
    method.load_state_dict(state["model"])
    batch, view = _first_batch(config, samples)
    ctx = Context(state["step"], state["epoch"], state["step"], config.seed)
    with torch.inference_mode():
        pictures = method.pictures(batch.to(run.device), ctx)
    return plot_views(
        list(pictures.values()) or batch,
        path,
        mean=view.mean,
        std=view.std,
        samples=len(batch),
        names=list(pictures) or None,
        title=f"{config.method} after {state['step']} steps" if pictures else "Augmented views",
    )


def _samples_per_class(source: Source) -> Counter[int]:
    """How many samples each class has; empty without labels."""
    labels = (source.label(i) for i in range(len(source)))
    return Counter(label for label in labels if label is not None)


def _first_batch(config: TrainConfig, samples: int | None) -> tuple[Batch, View]:
    """The first training images, as the method would see them, and what made their first view."""
    recipe = build_recipe(config, methods.get(config.method))
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"recipe: pictures are drawn of images and videos, and '{recipe.name}' makes views of "
            f"{recipe.modality}"
        )
    images = data.open_dataset(config.data, "train", modality=recipe.modality)
    size = min(samples or _SAMPLES.get(recipe.modality, 16), len(images))
    loader = data.make_loader(images, recipe, batch_size=size, seed=config.seed, threads=1)
    with closing(loader):
        return next(iter(loader)), recipe.views[0]


def _rejection(
    run: FinishedRun, probes: list[LinearProbe], plain: Features, corrupted: Features, path: Path
) -> Rejection:
    """Draw the curves, each the mean over the probes, and say what they come to."""
    both = plain.join(corrupted)
    variance = run.uncertainty(both)
    assert variance is not None
    curves = probe_curves(probes, both, variance)
    plot_rejection({name: curve.accuracy for name, curve in curves.items()}, path)
    # Half are corrupted: those that are not kept are rejected.
    is_corrupted = torch.arange(len(both)) >= len(plain)
    kept = rejection_curve(is_corrupted, variance).accuracy[len(plain)]
    return Rejection(
        accuracy=fmean(probe.score(plain).accuracy for probe in probes),
        accuracy_corrupted=fmean(probe.score(corrupted).accuracy for probe in probes),
        areas={name: curve.area for name, curve in curves.items()},
        corrupted_rejected=1 - float(kept),
    )


def _draw_map(features: Features, classes: list[str] | None, path: Path) -> Path:
    # Evenly spaced, so that every class of a sorted data set is on the map.
    every = -(-len(features) // _MAP_POINTS)
    chosen = features.select(torch.arange(0, len(features), every))
    return plot_map(embed_2d(chosen), chosen.labels, classes, path)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color: #333 }
table { border-collapse: collapse } td, th { padding: .3rem 1.5rem .3rem 0; text-align: left }
th { border-bottom: 1px solid #999 } img { max-width: 100% } pre { background: #f4f4f4 }
"""


def _page(found: Report, settings: dict[str, Any], folder: Path) -> str:
    """One HTML page with everything in it: it can be sent on its own."""
    title = html.escape(f"{settings['method']} on {found.data}")
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{title}</h1>")
    if found.scores:
        head = (
            f"<th>features<th>kNN, k = {found.k}<th>linear, {found.labels_per_class} labels/class"
        )
        rows = "".join(
            f"<tr><td>{s.features}<td>{s.knn:.1%}<td>{s.linear:.1%}" for s in found.scores
        )
        parts.append(f"<table><tr>{head}{rows}</table>")
    if found.rejection:
        areas = ", ".join(f"{name} {area:.1%}" for name, area in found.rejection.areas.items())
        parts.append(
            "<p>Every test image twice, as it is and with noise, blur, low contrast or a part "
            f"hidden: the linear probe is right on {found.rejection.accuracy:.1%} of the images as "
            f"they are and on {found.rejection.accuracy_corrupted:.1%} of the corrupted. Mean "
            f"accuracy over all rejected shares, by the order of rejection: {areas}. Of the half "
            f"with the largest variance, {found.rejection.corrupted_rejected:.1%} are corrupted."
        )
    for name in found.figures:
        encoded = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(f'<p><img src="data:image/png;base64,{encoded}" alt="{name}">')
    listed = "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
    parts.append(f"<h2>Settings</h2><pre>{html.escape(listed)}</pre>")
    return printable("\n".join(parts) + "\n")
