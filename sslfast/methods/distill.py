"""Distillation: a small encoder learns the features of a larger one that is done learning."""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslfast._arguments import BadArgument, PositiveFloat
from sslfast.data.batch import Batch
from sslfast.data.views.view import IMAGENET_MEAN, IMAGENET_STD
from sslfast.kernels.exchange import gather_rows, name_of
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.frozen import Frozen, Numbers
from sslfast.methods.masked import only_view
from sslfast.methods.registry import register
from sslfast.models import ProjectionHead


@register("distill")
class Distill(Method):
    """A frozen teacher's features of the same view: their directions, their distances, or both.

    "cosine": 1 minus the cosine of the teacher's features and a linear map of the student's.
    "relational": relational distillation by distances (RKD-D, arXiv:1904.05068, equation 5): smooth
    L1 between both networks' distances of all pairs of images in the batch, over all ranks, each
    divided by its mean. It takes features of any width, and leaves turns and scale open. (The
    published code also counts the N distances of images from themselves, which are 0.)

    The teacher is in no checkpoint and in no exported file: a run keeps a copy of its file.

    Args:
        encoder: the student, which maps a view [B, C, H, W] to features [B, F].
        teacher: the encoder.safetensors of a finished run, or a module with ``num_features`` that
            takes the views as they are. One of a file gets them in its own size and normalisation.
        form: "cosine", "relational", or "both", their sum.
        relational_weight: of the second of these.
        mean: the recipe's, of each channel, if it is not ImageNet's; a teacher's file says its own.
        std: likewise.

    Raises:
        BadArgument: there is no such file, or a folder.
        ValueError: it holds no encoder of images; no teacher is given.
    """

    recipe = "mae"
    files = ("teacher",)
    reference = Reference(
        "Park et al. 2019, arXiv:1904.05068 (the relational form)",
        {  # the paper distils from labels, in metric learning; these are ours
            **{"model": "resnet18", "batch_size": 256, "epochs": 100, "optimizer": "AdamW"},
            **{"lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 5},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        teacher: str | Path | nn.Module | None = None,
        form: Literal["cosine", "relational", "both"] = "both",
        relational_weight: PositiveFloat = 1.0,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[PositiveFloat, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__(encoder)
        self.form, self.relational_weight = form, relational_weight
        self.contrastive = form != "cosine"
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in encoder.modules())
        self.smallest_batch = 2 if has_batch_norm else 1
        frozen = Frozen.of(teacher, Numbers(tuple(mean), tuple(std)))
        self._frozen = (frozen,)  # in a tuple: no part of what is trained and saved
        if form != "relational":
            width = int(encoder.num_features)  # type: ignore[arg-type]
            self.projector = ProjectionHead(width, (), frozen.num_features)

    def check_views(self, recipe: Any) -> None:
        """Refuse views that are normalised otherwise than the teacher is told."""
        told = self._frozen[0].views
        for view in recipe.views:
            for name, wanted in told._asdict().items():
                if tuple(getattr(view, name)) != tuple(wanted):
                    raise BadArgument(
                        name,
                        f"must be the recipe's, {list(getattr(view, name))}, got {list(wanted)}",
                    )

    def _apply(self, fn: Any, recurse: bool = True) -> "Distill":
        """Move the teacher to where the method goes."""
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Features of the student [B, F] and of the teacher [B, T]."""
        images = only_view(batch)
        return self.encoder(images), self._frozen[0](images)

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """The sum of the chosen forms, and each: "similarity" (a cosine) and "relational"."""
        student, teacher = (x if x.dtype == torch.float64 else x.float() for x in outputs)
        found, losses = {}, []
        if self.form != "relational":
            projected = self.projector(student).to(teacher.dtype)
            similarity = F.cosine_similarity(projected, teacher).mean()
            losses.append(1 - similarity)
            found["similarity"] = similarity.detach()
        if self.form != "cosine":
            if ctx.world_size > 1:
                group = name_of(ctx.process_group)
                student, teacher = (gather_rows(x, group)[0] for x in (student, teacher))
            relational = F.smooth_l1_loss(distances(student), distances(teacher))
            losses.append(self.relational_weight * relational)
            found["relational"] = relational.detach()
        return {"loss": torch.stack(losses).sum(), **found}


def distances(features: Tensor) -> Tensor:
    """Euclidean distances of all pairs of rows [N, F], divided by their mean: [N (N - 1) / 2]."""
    with torch.autocast(features.device.type, enabled=False):
        centered = features - features.mean(0)  # differences of smaller numbers are more exact
        squares = centered.square().sum(1)
        squared = squares[:, None] + squares - 2 * centered @ centered.T
    first, second = torch.triu_indices(len(squared), len(squared), 1, device=squared.device)
    # Of equal rows there is no gradient.
    found = squared[first, second].clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
    return found / found.mean()
