"""Any encoder on any source of samples: its features, and how well they serve."""

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from sslfast._arguments import Part, PositiveInt, Seed, Threads, checked
from sslfast.data import Source
from sslfast.eval.features import Features, features_of
from sslfast.eval.finetune import FineTuning, fine_tune
from sslfast.eval.health import feature_health
from sslfast.eval.knn import knn_accuracy
from sslfast.eval.linear import linear_probe

Frozen = Literal["knn", "linear"]  # what looks at features alone
Protocol = Literal["knn", "linear", "finetune"]
NEIGHBOURS = 20  # k, where none is given


def check_options(
    protocol: Protocol,
    k: int | None = None,
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    settings: FineTuning | None = None,
) -> None:
    """Raise ValueError where a protocol is given what it does not use."""
    if protocol != "knn" and k is not None:
        raise ValueError(f"k is of knn, not of {protocol}")
    if protocol == "knn" and (labels_per_class is not None or label_fraction is not None):
        raise ValueError(
            "labels_per_class and label_fraction are of linear and finetune: knn uses all"
        )
    if protocol != "finetune" and settings is not None:
        raise ValueError(f"settings are of finetune, not of {protocol}")


@checked
def score(
    train: Features,
    test: Features,
    protocol: Frozen,
    *,
    k: PositiveInt | None = None,
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
        k: neighbours of "knn"; None: 20.
        labels_per_class: train labels a class of "linear"; None: no such limit.
        label_fraction: the part of the train labels that "linear" uses; None: all.
        seed: draws the labels of "linear".
        device: of the neighbours.

    Returns:
        "accuracy", in [0, 1], how it came about, and ``feature_health`` of the train features.

    Raises:
        ValueError: no labels, limits that the data cannot meet, or what the protocol does not use.
    """
    check_options(protocol, k, labels_per_class, label_fraction)
    if protocol == "knn":
        k = NEIGHBOURS if k is None else k
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
    k: PositiveInt | None = None,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
    settings: FineTuning | None = None,
) -> dict[str, Any]:
    """How well an encoder serves to tell the classes of a source, by one protocol.

    Args:
        encoder: maps the one view of a batch to features [B, D]; it is left as it is.
        train: labelled samples.
        test: labelled samples of the same classes.
        protocol: "knn" and "linear" as in ``score``, of ``features_of`` both sources; "finetune"
            trains a copy of the encoder with a linear head (``sslfast.eval.fine_tune``).
        recipe: of the views, as ``features_of`` takes it.
        batch_size: of the features.
        device: where the encoder is; None: where its first parameter is.
        threads: on the CPU, for loading; None: chosen by the loader.
        k: neighbours of "knn"; None: 20.
        labels_per_class: train labels a class of "linear" and "finetune"; None: no such limit.
        label_fraction: the part of the train labels that these use; None: all.
        seed: draws the labels of "linear" and "finetune", and all else that the latter draws.
        settings: of "finetune"; None: the defaults.

    Returns:
        "accuracy", in [0, 1], and how it came about.

    Raises:
        ValueError: an option that the protocol does not use; and see ``features_of``, ``score`` and
            ``fine_tune``.
    """
    check_options(protocol, k, labels_per_class, label_fraction, settings)
    encoding: dict[str, Any] = {"batch_size": batch_size, "device": device, "threads": threads}
    labels: dict[str, Any] = {
        "labels_per_class": labels_per_class,
        "label_fraction": label_fraction,
        "seed": seed,
    }
    if protocol == "finetune":
        return asdict(fine_tune(encoder, train, test, recipe, settings, **labels, **encoding))
    known, asked = (features_of(encoder, source, recipe, **encoding) for source in (train, test))
    return score(known, asked, protocol, k=k, **labels, device=device or "cpu")
