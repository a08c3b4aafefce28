"""What a self-supervised method is to the trainer, and what the trainer tells it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, MethodType
from typing import Any, ClassVar

from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.data import recipe
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import cached
from sslfast.optim import param_groups


@dataclass(frozen=True)
class Progress:
    """How far a training is, as schedules take it.

    Attributes:
        step: optimiser steps done so far.
        total_steps: steps of the whole training.
        steps_per_epoch: optimiser steps of one pass over the data; may be a fraction.
    """

    step: int
    total_steps: int
    steps_per_epoch: float

    @property
    def part(self) -> float:
        """The part of the steps that is done, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> float:
        """Passes over the data done so far, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def total_epochs(self) -> float:
        """Passes over the data of the whole training."""
        return self.total_steps / self.steps_per_epoch


@dataclass(frozen=True)
class Context:
    """Where the training stands, and on which rank; one for every optimiser step.

    Attributes:
        step: steps done so far (0 during the first).
        epoch: passes over the data set done so far.
        total_steps: steps of the whole training.
        seed: the run's seed; with ``step`` and the batch's sample ids it keys all randomness.
        schedules: the values of ``Method.schedules`` now, as 0-dim float32 tensors on the training
            device, so that using one costs no synchronisation and no recompilation.
        device_step: ``step`` in the same form, int64.
        rank: this process among those that train together.
        world_size: how many these are.
        process_group: their group, as losses take it; None where there is one process.
    """

    step: int
    epoch: int
    total_steps: int
    seed: int = 0
    schedules: Mapping[str, Tensor] = field(default_factory=dict)
    device_step: Tensor | None = None
    rank: int = 0
    world_size: int = 1
    process_group: Any = None

    @property
    def drawn_step(self) -> int | Tensor:
        """The step as mask samplers take it: ``device_step``, or without one the number.

        Code compiled for the number is compiled again for another one.
        """
        return self.step if self.device_step is None else self.device_step


@dataclass(frozen=True)
class Reference:
    """Where a method comes from.

    Attributes:
        paper: authors, year and arXiv number.
        hyperparameters: the settings of the paper's main experiment, for people; where its encoder
            is not here, or it is not known, ours in its place.
    """

    paper: str
    hyperparameters: Mapping[str, Any]


class Method(nn.Module, ABC):
    """A self-supervised objective around an encoder.

    A subclass takes the encoder first and its hyperparameters as keywords with defaults (those of a
    method that it extends may be ``**options``, passed on), and sets the class attributes below.
    ``encode`` and ``loss`` are apart so that they can run apart (a two-pass loss over cached
    embeddings, activation checkpointing, evaluation).

    Class attributes:
        recipe: what makes its views: the name of a recipe (``sslfast.data.recipe``), a recipe, or a
            function of the encoder's keywords, as a dict, that returns either.
        modalities: the kinds of data that it accepts.
        encoders: what the encoder must be.
        files: hyperparameters that name files; a run keeps copies of them.
        contrastive: whether the loss compares samples of a batch with each other, so that it is
            another loss in micro-batches, and needs two samples. An instance may set its own.
        smallest_batch: images of a micro-batch that batch norm and the loss need at least. An
            instance may set its own.
        reference: the paper and its settings.

    Attributes:
        encoder: what is trained; ``exported`` says what is kept.

    Raises:
        ValueError: an encoder of another class than ``encoders``, or of another kind of data than
            ``modalities`` (an encoder's ``modality``; "image" where it has none).
        BadArgument: a hyperparameter that its annotation does not allow (``sslfast._arguments``
            has names for ranges); it is a ValueError and a TypeError.
    """

    recipe: ClassVar[Any]
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    encoders: ClassVar[type[nn.Module]] = nn.Module
    files: ClassVar[tuple[str, ...]] = ()
    contrastive: bool = False
    smallest_batch: int = 1
    reference: ClassVar[Reference]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Check the hyperparameters of every method by their annotations."""
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            # Of the encoder, Method says more clearly what is wrong.
            cls.__init__ = checked(cls.__init__, but=("encoder",))  # type: ignore[method-assign]
            cls.__init__.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    @classmethod
    def own_recipe(cls, encoder_args: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """The recipe of its views, for an encoder that is built with these keywords.

        Raises:
            ValueError: no recipe has its name.
        """
        return recipe(cls.recipe(encoder_args) if callable(cls.recipe) else cls.recipe)

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, self.encoders):
            hint = ", such as vit_small" if self.encoders.__name__ == "VisionTransformer" else ""
            raise ValueError(
                f"{type(self).__name__} needs a {self.encoders.__name__} as its encoder, got "
                f"{type(encoder).__name__}: choose another model{hint}"
            )
        kind = getattr(encoder, "modality", "image")
        if kind not in self.modalities:
            change = {
                "video": "build the encoder without num_frames",
                "image": "build the encoder with num_frames, such as 16",
            }.get(kind, "choose another model, or another method")
            raise ValueError(
                f"{type(self).__name__} learns from {' or '.join(self.modalities)}s, and this "
                f"encoder is one for {kind}: {change}"
            )
        self.encoder = encoder

    @abstractmethod
    def encode(self, batch: Batch, ctx: Context) -> Any:
        """The batch's outputs that the loss compares: any nest of tensors."""

    @abstractmethod
    def loss(self, outputs: Any, ctx: Context) -> dict[str, Tensor]:
        """Compare the outputs of ``encode``.

        Returns:
            ``"loss"``, the 0-dim tensor to minimise, and any 0-dim metrics to log beside it, all
            on the training device (only the trainer reads them, at its log interval).
        """

    def forward(
        self, batch: Batch, ctx: Context, chunk_size: int | None = None
    ) -> dict[str, Tensor]:
        """``loss(encode(batch))``: one call, as DistributedDataParallel and compile need it.

        Args:
            batch: of any size.
            ctx: where the training stands.
            chunk_size: encode so many samples at a time, twice, with the activations of one chunk
                in memory (``sslfast.losses.cached``); None: the whole batch at once.
        """
        if chunk_size is None:
            return self.loss(self.encode(batch, ctx), ctx)

        def encode(method: Method, chunk: tuple[Any, Tensor, Tensor | None]) -> Any:
            return method.encode(Batch(*chunk, batch.meta), ctx)

        samples = batch.views, batch.sample_ids, batch.labels
        # A method of this module, so that its buffers are written once.
        encoder = MethodType(encode, self)
        return cached(lambda out: self.loss(out, ctx), encoder, samples, chunk_size=chunk_size)

    def schedules(self, progress: Progress) -> dict[str, float]:
        """Hyperparameters that change over training, by name.

        Three names mean something to the trainer, which then takes them instead of the run's:
        "lr", "weight_decay" and "momentum", that of all ``teachers``.
        """
        del progress
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser: biases, norms and scalars take no weight decay.

        Neither does what a module names in ``no_weight_decay()`` (positions and tokens). A group
        may also have "lr_scale", a factor of the learning rate, "fix_lr", which holds it at its
        peak, a "weight_decay" of its own, and "freeze_until", the epoch before which it is not
        trained.
        """
        return param_groups(self)

    def teachers(self) -> list[EMATeacher]:
        """The EMA teachers that follow in every step, each its student.

        The optimiser moves them, the first in its own pass over the weights: a method calls no
        ``update``.
        """
        return []

    def exported(self) -> nn.Module:
        """The module that is kept at the end: the encoder, or a teacher's copy of it."""
        return self.encoder

    def heads(self) -> dict[str, nn.Module]:
        """Modules on the encoder's features that are kept beside it, by name.

        Each is a class of ``sslfast.models.heads``. One called "uncertainty" gives variances
        [B, D], whose mean ``sslfast embed`` writes for every sample.
        """
        return {}

    def check_views(self, recipe: Any) -> None:
        """Find out before anything is written whether the recipe's views can be learnt from.

        Raises:
            ValueError: they cannot; the message says what to change.
        """
        del recipe

    def remarks(self, samples: int) -> list[str]:
        """What is unusual, though allowed, in training on so many samples; logged at the start."""
        del samples
        return []

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Images [B, C, H, W] (or videos) that show what the method does with a batch, by name.

        They are normalised as the views are. The default has none.
        """
        del batch, ctx
        return {}

    def after_load(self) -> None:
        """Run after the encoder's weights were replaced by others (``--init``)."""
        for teacher in self.teachers():
            teacher.set(teacher.student)

    def before_step(self, ctx: Context) -> None:
        """Run between the backward pass and the optimiser's step (gradients are still scaled)."""
        del ctx

    def after_step(self, ctx: Context) -> None:
        """Run after every optimiser step (queues, centers, prototype norms)."""
        del ctx


def _signature(method: type[Method]) -> inspect.Signature:
    """Of a method's constructor, with the hyperparameters of its base in the place of **options."""
    own = inspect.signature(method.__init__)
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own.parameters.values())
    if not passes_on:
        return own
    base = inspect.signature(super(method, method).__init__).parameters.values()
    more = [p for p in base if p.kind is p.KEYWORD_ONLY and p.name not in own.parameters]
    found = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return own.replace(parameters=found + more)
