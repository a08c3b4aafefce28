"""Any encoder on any source of samples: its features, and how well they serve."""

from contextlib import closing
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from sslfast import data
from sslfast._arguments import Part, PositiveInt, Seed, Threads, checked
from sslfast.data import Recipe, Source, make_loader
from sslfast.eval.features import Features, device_of, extract
from sslfast.eval.health import feature_health
from sslfast.eval.knn import knn_accuracy
from sslfast.eval.linear import linear_probe
from sslfast.eval.preprocess import Preprocess

Protocol = Literal["knn", "linear"]
_BATCH = {"video": 16}  # else 256


@checked
def features_of(
    encoder: nn.Module,
    source: Source,
    recipe: Any = None,
    *,
    batch_size: PositiveInt | None = None,
    device: torch.device | str | None = None,
    threads: Threads | None = None,
) -> Features:
    """Features of all samples of a source, in their order.

    Args:
        encoder: maps the one view of a batch to features [B, D].
        source: of the samples (``sslfast.data.open_dataset``).
        recipe: of that view, without randomness, or its name; None: as ``encoder.preprocess`` has
            it, which ``load_encoder`` sets.
        batch_size: None: 256, and 16 of videos.
        device: where the encoder is; None: where its first parameter is (else the CPU).
        threads: on the CPU, for loading; None: chosen by the loader.

    Raises:
        ValueError: no recipe, and an encoder that does not know what it takes; or as ``extract``.
    """
    if recipe is None:
        known = getattr(encoder, "preprocess", None)
        if not isinstance(known, Preprocess):
            raise ValueError(
                f"{type(encoder).__name__} does not say what views it takes, as encoders of "
                "load_encoder do: pass recipe, such as "
                'sslfast.data.recipe("eval", size=224)'
            )
        recipe = Recipe("eval", (known.view,))
    if isinstance(recipe, str):
        recipe = data.recipe(recipe)
    if device is None:
        device = device_of(encoder)
    loader = make_loader(
        source,
        recipe,
        batch_size=batch_size or _BATCH.get(recipe.modality, 256),
        device=device,
        threads=threads,
        train=False,
    )
    with closing(loader):
        return extract(encoder, loader, device)


@checked
def score(
    train: Features,
    test: Features,
    protocol: Protocol,
    *,
    k: PositiveInt = 20,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """How well features tell the classes of a test split, by one protocol.

    Args:
        train: with labels.
        test: with labels of the same classes.
        protocol: "knn" or "linear".
        k: neighbours of "knn".
        labels_per_class: train labels a class of "linear"; None: no such limit.
        label_fraction: the part of the train labels that "linear" uses; None: all.
        seed: draws the labels of "linear".
        device: of the neighbours.

    Returns:
        "accuracy", in [0, 1], how it came about, and ``feature_health`` of the train features.

    Raises:
        ValueError: no labels, or limits that the data cannot meet.
    """
    if protocol == "knn":
        if labels_per_class is not None or label_fraction is not None:
            raise ValueError("labels_per_class and label_fraction are of linear: knn uses all")
        accuracy = knn_accuracy(train, test, k=k, device=device)
        found = {"accuracy": accuracy, "k": k, "n_train": len(train), "n_test": len(test)}
    else:
        found = asdict(linear_probe(train, test, labels_per_class, label_fraction, seed))
    return {**found, **feature_health(train.features)}


@checked
def evaluate(
    encoder: nn.Module,
    train: Source,
    test: Source,
    protocol: Protocol = "knn",
    recipe: Any = None,
    *,
    batch_size: PositiveInt | None = None,
    device: torch.device | str | None = None,
    threads: Threads | None = None,
    k: PositiveInt = 20,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """``score`` of an encoder's ``features_of`` two sources, with the arguments of both.

    Raises:
        ValueError: see ``features_of`` and ``score``.
    """
    known, asked = (
        features_of(encoder, source, recipe, batch_size=batch_size, device=device, threads=threads)
        for source in (train, test)
    )
    return score(
        known,
        asked,
        protocol,
        k=k,
        labels_per_class=labels_per_class,
        label_fraction=label_fraction,
        seed=seed,
        device=device or "cpu",
    )
