"""Evaluation of a run: which images, seen how, by which encoder."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslfast import data
from sslfast._arguments import (
    BadArgument,
    Part,
    PositiveInt,
    Seed,
    Threads,
    check_arguments,
    checked,
)
from sslfast._files import replacing
from sslfast.data import Recipe, Source
from sslfast.data.sources.opening import has_split
from sslfast.eval import (
    Features,
    FineTuneResult,
    FineTuning,
    features_of,
    fine_tune,
    score,
)
from sslfast.eval.corruptions import corrupt_batch
from sslfast.eval.protocols import Protocol, check_options
from sslfast.models.encoder_file import WeightsError
from sslfast.training.config import ConfigError, TrainConfig, read_yaml, user_path
from sslfast.training.distributed import resolve_device
from sslfast.training.encoder import (
    build_encoder,
    evaluation_recipe,
    load_encoder,
    place,
    read_description,
)
from sslfast.training.heads import FILE_NAME as HEADS
from sslfast.training.heads import read_heads
from sslfast.training.run_folder import RunFolder, RunFolderError
from sslfast.training.storage import explain_full_disk, write_text

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class FinishedRun:
    """A run with its encoder, ready to look at labelled images.

    Attributes:
        folder: its files, or where an encoder's file lies.
        weights: the encoder's file.
        description: what encoder.safetensors says: model, model_args, image_size, mean, std ...
        settings: what config.yaml says, but ``data`` where it is found from any working directory.
        device: where to compute.
        threads: CPU threads for loading data; None: chosen by the loader.
    """

    folder: RunFolder
    weights: Path
    description: dict[str, Any]
    settings: dict[str, Any]
    device: torch.device
    threads: int | None = None

    @classmethod
    @checked
    def open(
        cls, path: Path | str, device: Device = "auto", threads: Threads | None = None
    ) -> "FinishedRun":
        """Open a run's folder, or an encoder's file alone, which says nothing of data.

        Raises:
            RunFolderError: it holds no finished run.
            ConfigError: its config.yaml is damaged.
            ValueError: its encoder is.
        """
        if Path(path).is_file():
            return cls._of_file(Path(path), device, threads)
        folder = RunFolder(path)
        for file in (folder.config, folder.encoder):
            if not file.is_file():
                raise RunFolderError(f"{path} holds no finished run: there is no {file.name}")
        description, settings = read_description(folder.encoder), _settings(folder.config)
        manifest = folder.manifest()
        if manifest is not None and os.path.exists(manifest.place):
            settings["data"] = manifest.place
        return cls(folder, folder.encoder, description, settings, resolve_device(device), threads)

    @classmethod
    def _of_file(cls, path: Path, device: Device, threads: int | None) -> "FinishedRun":
        settings = {"data": None, "seed": 0}
        folder, where = RunFolder(path.parent), resolve_device(device)
        return cls(folder, path, read_description(path), settings, where, threads)

    def spec(self, given: Path | str | None) -> str:
        """The data that was asked for: the run's own where none is given.

        Raises:
            ConfigError: none is given, and an encoder's file alone has none.
        """
        found = self.settings["data"] if given is None else given
        if not found:
            raise ConfigError(
                "give --data (in Python, spec): an encoder's file names no data of its own"
                if given is None
                else "data is empty: name a folder or builtin:NAME"
            )
        return str(found)

    def encoder(self) -> nn.Module:
        """The pre-trained encoder, on the device."""
        return place(load_encoder(self.weights), self.device)

    def random_encoder(self) -> nn.Module:
        """The encoder as it was before its training (or before --init), on the device."""
        model, keywords = self.description["model"], self.description["model_args"]
        encoder = build_encoder(model, keywords, self.settings["seed"])
        return place(encoder, self.device)

    def dataset(self, spec: Path | str, split: str) -> Source:
        """Samples for this encoder: images, or videos."""
        return data.open_dataset(spec, split, modality=self._recipe().modality)

    def has_split(self, spec: str, split: str) -> bool:
        """Whether ``dataset`` finds such a split."""
        return has_split(spec, split, self._recipe().modality)

    def features(
        self, encoder: nn.Module | None, images: Source, corrupted: bool = False
    ) -> Features:
        """The features of all samples, in their order; without an encoder, the pixels.

        Of ``corrupted`` images, each is spoilt in one way (``sslfast.eval.corruptions``).
        """
        recipe = self._recipe()
        return features_of(
            nn.Flatten() if encoder is None else encoder,
            images,
            recipe,
            device=self.device,
            threads=self.threads,
            change=partial(corrupt_batch, view=recipe.views[0]) if corrupted else None,
        )

    def uncertainty(self, features: Features) -> Tensor | None:
        """The mean predicted variance [N] of samples; None where the run has no such head.

        Raises:
            ValueError: the run's heads are of another step than its encoder.
        """
        path = self.weights.parent / HEADS
        if not path.is_file():
            return None
        heads, description = read_heads(path)
        if description.get("checkpoint") != self.description.get("checkpoint"):
            raise WeightsError(
                f"{path} is of another step than the encoder beside it: let the run finish, by the "
                "command that started it"
            )
        if "uncertainty" not in heads:
            return None
        with torch.inference_mode():
            return heads["uncertainty"](features.features).mean(1)

    def fine_tune(
        self, encoder: nn.Module, train: Source, test: Source, settings: FineTuning, **labels: Any
    ) -> FineTuneResult:
        """``sslfast.eval.fine_tune`` of an encoder of this run, with its views.

        Args:
            encoder: ``encoder()``, or one like it.
            train: labelled samples.
            test: labelled samples.
            settings: of the training.
            **labels: labels_per_class, label_fraction and seed.
        """
        labels |= {"device": self.device, "threads": self.threads}
        return fine_tune(encoder, train, test, self._recipe(), settings, **labels)

    def _recipe(self) -> Recipe:
        """Views as the encoder expects them, without randomness."""
        return evaluation_recipe(self.weights, self.description)


@checked
def evaluate(
    run: FinishedRun,
    protocol: Protocol,
    spec: Path | str | None = None,
    *,
    k: PositiveInt | None = None,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
    settings: FineTuning | None = None,
    draws: PositiveInt = 1,
    from_scratch: bool = False,
) -> dict[str, Any]:
    """Evaluate the encoder by one protocol and write RUN/eval_PROTOCOL.json.

    Args:
        run: a finished run.
        protocol: "knn", "linear" or "finetune".
        spec: labelled data with a train and a test split; None: the run's own.
        k: neighbours of "knn"; None: 20.
        labels_per_class: train labels a class of "linear" and "finetune"; None: no such limit.
        label_fraction: the part of the train labels that these use; None: all.
        seed: draws the labels.
        settings: of "finetune"; None: the defaults.
        draws: "finetune" as often, with labels of seed, seed + 1 and so on.
        from_scratch: "finetune" the encoder as it was before its training, too: with the same
            labels, crops, batches, steps and learning rate (``FineTuning.from_scratch``).

    Returns:
        What is written: "accuracy", in [0, 1], and how it came about. Of several draws it is the
        mean, with "accuracy_std", their deviation; all are in "accuracies". What is of the
        encoder from scratch begins with "scratch_".

    Raises:
        ValueError: no labels, no test split, limits that the data cannot meet, or options that the
            protocol does not use.
    """
    if protocol != "finetune" and (settings is not None or draws > 1 or from_scratch):
        raise ConfigError(
            f"steps, epochs, lr, batch_size, draws, from_scratch are of finetune, not of {protocol}"
        )
    check_options(protocol, k, labels_per_class, label_fraction)
    spec = run.spec(spec)
    train, test = (run.dataset(spec, split) for split in ("train", "test"))
    labels: dict[str, Any] = {
        "labels_per_class": labels_per_class,
        "label_fraction": label_fraction,
    }
    if protocol == "finetune":
        seeds = range(seed, seed + draws)
        result = _fine_tuned(
            run, train, test, settings or FineTuning(), seeds, labels, from_scratch
        )
    else:
        encoder = run.encoder()
        known, asked = (run.features(encoder, source) for source in (train, test))
        result = score(known, asked, protocol, k=k, **labels, seed=seed, device=run.device)
    found: dict[str, Any] = {"protocol": protocol, "data": spec, **result}
    path = run.folder.path / f"eval_{protocol}.json"
    write_text(path, json.dumps(found, indent=2) + "\n")
    return found


def _fine_tuned(
    run: FinishedRun,
    train: Source,
    test: Source,
    settings: FineTuning,
    seeds: Sequence[int],
    labels: dict[str, Any],
    from_scratch: bool,
) -> dict[str, Any]:
    """Fine-tune with the labels of every seed: the mean accuracies, and what all had in common."""
    found: dict[str, Any] = {}
    trained = {"": (run.encoder(), settings)}
    if from_scratch:
        random = run.random_encoder()
        trained["scratch_"] = random, settings.from_scratch(random)
    for name, (encoder, how) in trained.items():
        results = [run.fine_tune(encoder, train, test, how, seed=s, **labels) for s in seeds]
        accuracies = [result.accuracy for result in results]
        found[f"{name}accuracy"] = fmean(accuracies)
        found[f"{name}start_accuracy"] = fmean(result.start_accuracy for result in results)
        if len(seeds) > 1:
            found |= {f"{name}accuracy_std": stdev(accuracies), f"{name}accuracies": accuracies}
    # Steps and batch size that it came to, in the place of those that were asked for.
    facts = {"seeds": list(seeds), **asdict(settings), **asdict(results[0])}
    return found | {name: value for name, value in facts.items() if name not in found}


def embed(
    run: FinishedRun,
    spec: Path | str | None = None,
    split: str = "train",
    out: Path | str | None = None,
) -> Path:
    """Write the features of images as an .npz file.

    The file holds ``features`` float32 [N, F], ``sample_ids`` int64 [N], ``paths`` [N] and, where
    there are labels, ``labels`` int64 [N] and ``classes``. Where the run has kept a head called
    "uncertainty" (``vssl``), ``uncertainty`` float32 [N] is the mean of its variances.

    Args:
        run: a finished run.
        spec: the images; None: the run's own.
        split: which of them.
        out: the file to write; None: features_SPLIT.npz in the run's folder.

    Raises:
        ValueError: the run's heads are of another step than its encoder.
    """
    images = run.dataset(run.spec(spec), split)
    features = run.features(run.encoder(), images)
    ids = features.sample_ids.numpy()
    arrays: dict[str, Any] = {
        "features": features.features.numpy(),
        "sample_ids": ids,
        "paths": np.array([images.sample_name(i) for i in ids]),
    }
    if features.labels is not None and images.classes is not None:
        arrays |= {"labels": features.labels.numpy(), "classes": np.array(images.classes)}
    uncertainty = run.uncertainty(features)
    if uncertainty is not None:
        arrays["uncertainty"] = uncertainty.numpy()
    path = Path(user_path(out)) if out else run.folder.path / f"features_{split}.npz"
    with explain_full_disk(path), replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return path


def _settings(path: Path) -> dict[str, Any]:
    """What a run's config.yaml says; of what it does not, the default.

    Only each by itself is checked: what a finished run did is no longer to be refused.
    """
    settings = TrainConfig(**read_yaml(path)).to_dict()
    try:
        check_arguments(TrainConfig, settings, none="null")
    except BadArgument as error:
        raise ConfigError(f"{path}: {error}") from error
    if not settings["data"]:
        raise ConfigError(f"{path} names no data: it is not of a run")
    return settings
