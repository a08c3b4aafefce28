"""Fine-tuning with few labels: the whole encoder is trained, with a linear head on it."""

import copy
import logging
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import (
    BadArgument,
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    Rate,
    Seed,
    Threads,
    check_arguments,
    checked,
)
from sslfast.data import Loader, Recipe, Source, make_loader
from sslfast.data.sources.subset import subset
from sslfast.eval.features import (
    Features,
    device_of,
    features_of,
    labels_of,
    recipe_of,
    unlabelled,
)
from sslfast.eval.labels import draw_labels
from sslfast.eval.linear import linear_head
from sslfast.optim import AdamW, param_groups
from sslfast.optim.layers import layered
from sslfast.optim.schedules import warmup_cosine

logger = logging.getLogger("sslfast")
PROTOCOL = "fine-tuning"  # in messages
# Where neither steps nor epochs are given: so many passes over the labels, and never fewer steps.
EPOCHS, LEAST_STEPS = 30, 200


@dataclass(frozen=True)
class FineTuning:
    """How a network is fine-tuned: AdamW, a linear warm-up and a cosine, crops and flips.

    The defaults are for few labels, of ResNets and Vision Transformers alike.

    Args:
        steps: optimiser steps; None: as many as epochs say.
        epochs: passes over the labelled samples; None: 30, and at least 200 steps.
        lr: the peak learning rate.
        batch_size: samples a step, or all labelled ones where these are fewer.
        weight_decay: of weights; biases and norms take none.
        layer_decay: the learning rate falls by this factor with every layer of an encoder that says
            what its layers are (Vision Transformers) towards its input.
        warmup: part of the steps in which the learning rate rises; where it is not 0, two steps at
            least, so that the first one never takes the peak.
        label_smoothing: part of a label that is spread over all classes.
        crop_scale: area of the random crop, as a range of fractions of the image.
        flip: probability of a left-right flip.
        start: of the head: that of a linear probe of the same labels, so that the first steps do
            not tear the features apart (LP-FT: Kumar et al. 2022, arXiv:2202.10054); or zeros.
        batch_norm: "frozen" keeps the running statistics that pre-training left, of far more images
            than have labels; "batch" normalises by each batch.

    Raises:
        BadArgument: a value out of its range; it is a ValueError.
    """

    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    lr: PositiveFloat = 3e-3
    batch_size: PositiveInt = 64
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: Part = 0.75
    warmup: Probability = 0.1
    label_smoothing: Rate = 0.1
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    flip: Probability = 0.5
    start: Literal["probe", "zeros"] = "probe"
    batch_norm: Literal["frozen", "batch"] = "frozen"

    def __post_init__(self) -> None:
        check_arguments(FineTuning, vars(self))
        if self.steps is not None and self.epochs is not None:
            raise BadArgument("steps", "and epochs are both given: give one of them")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of the whole training."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        return max(EPOCHS * steps_per_epoch, LEAST_STEPS)

    def warmup_steps(self, steps: int) -> int:
        """Of how many steps the learning rate rises."""
        return max(2, round(self.warmup * steps)) if self.warmup else 0

    def from_scratch(self, encoder: nn.Module) -> "FineTuning":
        """The same for an encoder of random weights.

        Running statistics that nobody has gathered are not to be kept: with batch norm in it, it
        takes those of each batch, and the head starts at zero, since a probe's does not fit what
        these make of the features. Without batch norm nothing is changed.
        """
        if not any(map(is_batch_norm, encoder.modules())):
            return self
        return replace(self, start="zeros", batch_norm="batch")


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, of whatever dimension."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


class Classifier(nn.Module):
    """An encoder and a linear head: inputs as the encoder takes them -> logits [B, C].

    Attributes:
        classes: the label that each logit is for, int64 [C].
    """

    classes: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Linear, classes: Tensor) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.register_buffer("classes", classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


@dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning came to.

    Attributes:
        accuracy: top-1 on the test set, in [0, 1]. A class without train labels counts as errors.
        start_accuracy: of the head that it began with, on the encoder as it was.
        n_labels: train labels used.
        n_classes: classes among them.
        n_test: test samples.
        steps: taken.
        batch_size: samples of each.
    """

    accuracy: float
    start_accuracy: float
    n_labels: int
    n_classes: int
    n_test: int
    steps: int
    batch_size: int


@checked
def fine_tune(
    encoder: nn.Module,
    train: Source,
    test: Source,
    recipe: Any = None,
    settings: FineTuning | None = None,
    *,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
    batch_size: PositiveInt | None = None,
    device: torch.device | str | None = None,
    threads: Threads | None = None,
) -> FineTuneResult:
    """Fine-tune a copy of an encoder with few labels, and look at the test set.

    The same seed draws the same labels as that of ``linear_probe``, and gives the same result.

    Args:
        encoder: maps the one view of a batch to features [B, D]; it is left as it is.
        train: the labelled samples.
        test: labelled, too; of the same classes.
        recipe: of the views, without randomness, or its name; None: as ``encoder.preprocess`` has
            it. The training adds crops and flips of ``settings`` to it.
        settings: of the training; None: the defaults.
        labels_per_class: use this many train labels of each class; None: no such limit.
        label_fraction: use this part, in (0, 1], of the train labels of each class, at least one.
        seed: draws labels, batches, crops, and what the network itself draws.
        batch_size: of evaluation, as ``features_of`` takes it; that of the training is a setting.
        device: where the encoder is; None: where its first parameter is.
        threads: on the CPU, for loading; None: chosen by the loader.

    Raises:
        ValueError: samples without labels, fewer than asked for or of one class only; no recipe;
            or a training that diverged.
    """
    settings = settings or FineTuning()
    recipe = recipe_of(encoder, recipe)
    device = torch.device(device or device_of(encoder))
    truth = labels_of_source(test, "test")
    labels = labels_of_source(train, "train")
    drawn = draw_labels(labels, torch.arange(len(train)), labels_per_class, label_fraction, seed)
    labelled = subset(train, drawn.tolist())
    encode = partial(
        features_of, recipe=recipe, batch_size=batch_size, device=device, threads=threads
    )
    model = start(encoder, encode(encoder, labelled), settings.start).to(device)
    first = accuracy_of(encode(model, test), truth, model.classes)
    loader = make_loader(
        labelled,
        augmented(recipe, settings),
        batch_size=min(settings.batch_size, len(labelled)),
        device=device,
        seed=seed,
        threads=threads,
    )
    with closing(loader):
        steps = settings.total_steps(loader.steps_per_epoch)
        fit(model, loader, settings, steps, seed)
    accuracy = accuracy_of(encode(model, test), truth, model.classes)
    if accuracy < first:
        logger.warning(
            "%s made it worse: accuracy %.1f%%, from %.1f%% at its start; take more steps than %d, "
            "or a lower lr than %g",
            *(PROTOCOL, 100 * accuracy, 100 * first, steps, settings.lr),
        )
    return FineTuneResult(
        accuracy=accuracy,
        start_accuracy=first,
        n_labels=len(labelled),
        n_classes=len(model.classes),
        n_test=len(test),
        steps=steps,
        batch_size=min(settings.batch_size, len(labelled)),
    )


def labels_of_source(source: Source, name: str) -> Tensor:
    """The labels of all samples, int64 [N].

    Raises:
        ValueError: there is no sample, or one without a label.
    """
    labels = [source.label(i) for i in range(len(source))]
    if not labels:
        raise ValueError(f"the {name} set is empty")
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        raise ValueError(unlabelled(name, PROTOCOL))
    return torch.tensor(known)


def start(encoder: nn.Module, known: Features, head: Literal["probe", "zeros"]) -> Classifier:
    """A copy of an encoder with the head that the training begins with.

    Args:
        encoder: maps inputs to features [B, D].
        known: its features of the labelled samples.
        head: see ``FineTuning``.

    Raises:
        ValueError: labels of one class, or features that are not finite.
    """
    classes, y = labels_of(known, "train", PROTOCOL).unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{PROTOCOL} needs train labels of at least two classes, got one")
    if head == "probe":
        layer = linear_head(known.features, y)
    else:
        layer = nn.utils.skip_init(nn.Linear, known.features.shape[1], len(classes))
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return Classifier(copy.deepcopy(encoder), layer, classes)


def augmented(recipe: Any, settings: FineTuning) -> Any:
    """The evaluation's views with random crops and flips; of other data, as they are."""
    if not isinstance(recipe, Recipe):
        return recipe
    views = tuple(
        replace(view, crop_scale=settings.crop_scale, flip=settings.flip) for view in recipe.views
    )
    return replace(recipe, name="finetune", views=views)


def fit(
    model: Classifier, loader: Loader, settings: FineTuning, steps: int, seed: int = 0
) -> Classifier:
    """Train a classifier, which is left in evaluation mode.

    Args:
        model: on the loader's device; parameters that need no gradient stay as they are.
        loader: of labelled batches with one view.
        settings: of the training.
        steps: to take.
        seed: of what the network draws.

    Raises:
        ValueError: the loss became NaN or infinite.
    """
    device = model.classes.device
    groups = param_groups(model)
    if callable(getattr(model.encoder, "layers", None)):
        groups = layered(groups, model.encoder, settings.layer_decay)
    peaks = [settings.lr * group.pop("lr_scale", 1.0) for group in groups]
    optimizer = AdamW(groups, settings.lr, weight_decay=settings.weight_decay, max_norm=1.0)
    model.train()
    if settings.batch_norm == "frozen":
        for module in model.modules():
            if is_batch_norm(module):
                module.eval()
    batches = (batch for _ in range(steps) for batch in loader)  # epochs: more than are needed
    warmup = settings.warmup_steps(steps)
    loss = torch.zeros(())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step, batch in zip(range(steps), batches, strict=False):
            now = warmup_cosine(step, peak=1.0, warmup=warmup, total=steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = now * peak
            assert batch.labels is not None
            target = torch.searchsorted(model.classes, batch.labels)
            logits = model(batch.views[0])
            loss = F.cross_entropy(logits, target, label_smoothing=settings.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not loss.isfinite():
        raise ValueError(f"{PROTOCOL} diverged: lower lr, which was {settings.lr:g}")
    return model.eval()


def accuracy_of(logits: Features, truth: Tensor, classes: Tensor) -> float:
    """Top-1, in [0, 1], of logits for ``classes`` [C] against the labels of all samples [N]."""
    predicted = classes.cpu()[logits.features.argmax(dim=1)]
    return float((predicted == truth[logits.sample_ids]).double().mean())
