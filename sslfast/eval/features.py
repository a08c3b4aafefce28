"""Frozen features of a data set: what every evaluation protocol starts from."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslfast import data
from sslfast._arguments import PositiveInt, Threads, checked
from sslfast.data import Batch, Recipe, Source, make_loader
from sslfast.eval.preprocess import Preprocess

_BATCH = {"video": 16}  # else 256


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N samples, on the CPU, in the order of the loader.

    Attributes:
        features: float32 [N, D].
        labels: int64 [N], or None where the data set has none.
        sample_ids: int64 [N], positions in the data set.

    Raises:
        ValueError: shapes or dtypes are not these.
    """

    features: Tensor
    labels: Tensor | None
    sample_ids: Tensor

    def __post_init__(self) -> None:
        if self.features.dim() != 2 or self.features.dtype != torch.float32:
            raise ValueError(
                f"features must be float32 [N, D], got {self.features.dtype} "
                f"{list(self.features.shape)}"
            )
        for name, vector in (("labels", self.labels), ("sample_ids", self.sample_ids)):
            if vector is None:
                continue
            if vector.shape != (len(self.features),) or vector.dtype != torch.int64:
                raise ValueError(
                    f"{name} must be int64 [{len(self.features)}], one per row of features, got "
                    f"{vector.dtype} {list(vector.shape)}"
                )

    def __len__(self) -> int:
        return len(self.features)

    def select(self, index: Tensor) -> "Features":
        """The rows at ``index`` (int64 [M], or bool [N])."""
        labels = None if self.labels is None else self.labels[index]
        return Features(self.features[index], labels, self.sample_ids[index])

    def join(self, other: "Features") -> "Features":
        """All rows of both; with labels where both have them."""
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = torch.cat([self.labels, other.labels])
        return Features(
            torch.cat([self.features, other.features]),
            labels,
            torch.cat([self.sample_ids, other.sample_ids]),
        )


def device_of(encoder: nn.Module) -> torch.device:
    """Where its first parameter is, else the CPU."""
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


def extract(
    encoder: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str | None = None,
) -> Features:
    """Run ``encoder`` over ``loader``, in evaluation mode and without gradients.

    Rows come in the order of the loader; give it one that neither shuffles nor augments, and the
    result is the same from run to run. Every module of the encoder is put back into the mode it
    was in, also when this raises.

    Args:
        encoder: maps images [B, C, H, W] to features [B, D], and is already on ``device``.
        loader: yields batches with one view: a tensor, or a tuple or list of one tensor.
        device: where the encoder is; None: where its first parameter is (else the CPU).

    Returns:
        The features as float32 on the CPU.

    Raises:
        ValueError: the loader yields nothing, a batch with several views, or labels in some batches
            only; or the encoder does not return a tensor [B, D].
    """
    if device is None:
        device = device_of(encoder)
    features, labels, sample_ids = [], [], []
    with _evaluating(encoder):
        for batch in loader:
            with torch.inference_mode():
                output = encoder(_only_view(batch.views).to(device))
            if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(batch):
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"the encoder must return one feature vector per sample, [{len(batch)}, D]; "
                    f"it returned {shape}"
                )
            features.append(output.to("cpu", torch.float32))
            sample_ids.append(batch.sample_ids.cpu())
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
    if not features:
        raise ValueError("the loader yielded no batch: is the data set empty?")
    if labels and len(labels) != len(features):
        raise ValueError(
            f"{len(labels)} of {len(features)} batches have labels; label all samples or none"
        )
    return Features(
        torch.cat(features), torch.cat(labels) if labels else None, torch.cat(sample_ids)
    )


@checked
def features_of(
    encoder: nn.Module,
    source: Source,
    recipe: Any = None,
    *,
    batch_size: PositiveInt | None = None,
    device: torch.device | str | None = None,
    threads: Threads | None = None,
    change: Callable[[Batch], Batch] | None = None,
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
        change: what to do to each batch before the encoder sees it.

    Raises:
        ValueError: no recipe, and an encoder that does not know what it takes; or as ``extract``.
    """
    recipe = recipe_of(encoder, recipe)
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
        return extract(encoder, map(change, loader) if change else loader, device)


def recipe_of(encoder: nn.Module, recipe: Any = None) -> Any:
    """The recipe of the views that an encoder takes, without randomness.

    Args:
        encoder: whose ``preprocess`` says it, where no recipe is given.
        recipe: or its name.

    Raises:
        ValueError: no recipe, and an encoder that does not know what it takes.
    """
    if recipe is None:
        known = getattr(encoder, "preprocess", None)
        if not isinstance(known, Preprocess):
            raise ValueError(
                f"{type(encoder).__name__} does not say what views it takes, as encoders of "
                "load_encoder do: pass recipe, such as "
                'sslfast.data.recipe("eval", size=224)'
            )
        return Recipe("eval", (known.view,))
    return data.recipe(recipe) if isinstance(recipe, str) else recipe


def raw_pixels(loader: Iterable[Batch]) -> Features:
    """The pixels themselves as features [N, C*H*W]: the baseline that learning has to beat."""
    return extract(nn.Flatten(), loader)


def labels_of(features: Features, name: str, protocol: str) -> Tensor:
    """The labels int64 [N] of a labelled, non-empty, finite feature set.

    Args:
        features: the feature set to check.
        name: what to call it in an error ("train", "test").
        protocol: what needs the labels ("kNN").

    Raises:
        ValueError: there is no sample or no label, or some rows have a NaN or an infinity.
    """
    check_usable(features.features, name)
    if features.labels is None:
        raise ValueError(unlabelled(name, protocol))
    return features.labels


def unlabelled(name: str, protocol: str) -> str:
    """What to say where a protocol needs the labels of a set that has none."""
    return (
        f"{protocol} needs labels, but the {name} set has none: arrange the images in one "
        "sub-folder per class, or evaluate on a labelled data set"
    )


def check_usable(features: Tensor, name: str) -> None:
    """Raise ValueError if ``features`` [N, D] is empty or has a row with a NaN or an infinity."""
    if features.numel() == 0:
        raise ValueError(f"the {name} set is empty: features have shape {list(features.shape)}")
    bad = int((~features.isfinite().all(dim=1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} rows of the {name} features are not finite: the encoder has "
            "diverged, or its inputs are not finite; use an earlier checkpoint"
        )


def check_same_width(train: Features, test: Features) -> None:
    """Raise ValueError unless both sets have the same number of columns."""
    widths = train.features.shape[1], test.features.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"train features have {widths[0]} columns and test features {widths[1]}: "
            "extract both with the same encoder"
        )


def _only_view(views: Any) -> Tensor:
    if isinstance(views, (tuple, list)) and len(views) == 1:
        views = views[0]
    if not isinstance(views, Tensor):
        count = f"{len(views)} views" if isinstance(views, (tuple, list, dict)) else "no tensor"
        raise ValueError(
            f"evaluation needs batches with exactly one view, got {count}: use a loader with the "
            "evaluation recipe"
        )
    return views


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after it, every submodule is in the mode it was in before."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode
