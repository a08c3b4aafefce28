"""MSN: an image with hidden patches belongs to the prototypes that the whole image belongs to."""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import MSNLoss
from sslfast.masking import random_mask
from sslfast.methods import masked, views
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.models import PrototypeHead, VisionTransformer
from sslfast.models.crops import encode_crops
from sslfast.optim import param_groups


@register("msn")
class MSN(Method):
    """MSN (arXiv:2204.07141): cross-entropy with a teacher's sharpened softmax over prototypes.

    The teacher sees the first view whole. The student sees the second, without some of its
    patches, and small crops, and the mean of its softmaxes is to use all prototypes alike, as do
    the targets (Sinkhorn-Knopp). Its encoder is the teacher's, which the paper evaluates.

    Args:
        encoder: a VisionTransformer.
        out_dim: prototypes; no more than images, and fewer for a small data set.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of its unit vectors.
        mask_ratio: part of the second view's patches that the student does not see: 0.15 for a
            ViT-S, 0.3 for a ViT-B, 0.7 for a ViT-L; 0: none.
        momentum: of the teacher at the start; it rises linearly to 1. A short run wants less.
        temperature: of the student's softmax.
        sharpening: the teacher's temperature is this times the student's.
        sinkhorn_iterations: 0: none.
        regularization_weight: of the mean softmax's entropy.
    """

    recipe = "msn"
    encoders = VisionTransformer
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Assran et al. 2022, arXiv:2204.07141",
        {
            **{"model": "vit_small", "batch_size": 1024, "epochs": 800, "warmup_epochs": 15},
            **{"optimizer": "AdamW", "lr": 1e-3, "min_lr": 1e-6, "weight_decay": 0.04},
            **{"weight_decay_end": 0.4, "momentum": 0.996, "mask_ratio": 0.15, "out_dim": 1024},
            **{"temperature": 0.1, "sharpening": 0.25},
        },
    )
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        out_dim: Width = 1024,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        mask_ratio: Probability = 0.15,
        momentum: Probability = 0.996,
        temperature: PositiveFloat = 0.1,
        sharpening: PositiveFloat = 0.25,
        sinkhorn_iterations: NonNegativeInt = 3,
        regularization_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(encoder)
        rows, columns = masked.image_grid(encoder)
        self.hidden = masked.hidden_number(mask_ratio, rows * columns, ceil) if mask_ratio else 0
        widths = encoder.num_features, hidden_dim, bottleneck_dim, out_dim
        self.head = PrototypeHead(*widths, batch_norm=True)
        self.student = views.Network(encoder, self.head)
        self.momentum, self.teacher = momentum, EMATeacher(self.student, momentum)
        self.criterion = MSNLoss(
            temperature, sinkhorn_iterations, regularization_weight, gather_distributed=True
        )
        self.sharpening = sharpening

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Views V x [B, C, H, W] -> unit vectors of anchors [B, V - 1, D], and targets [B, D]."""
        target, second, *crops = batch.views
        views.use_batch_statistics(self.teacher)
        with torch.no_grad():
            targets = self.teacher(target)
        tokens = self.encoder.forward_features(second, self.visible(batch, ctx))
        small = encode_crops(self.student, crops) if crops else []
        anchors = [self.head(self.encoder.forward_head(tokens)), *small]
        return torch.stack(anchors, 1), targets

    def visible(self, batch: Batch, ctx: Context) -> Tensor | None:
        """The patches of the second view that the student sees [B, K]; None: all."""
        if not self.hidden:
            return None
        ids, (rows, columns) = batch.sample_ids, masked.image_grid(self.encoder)
        mask = random_mask(
            len(ids), rows * columns, num_masked=self.hidden,
            seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids,
        )  # fmt: skip
        return mask.ids_keep

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """The loss, the targets' entropy, how many prototypes they use, and the anchors' spread."""
        anchors, targets = outputs
        self.criterion.process_group = ctx.process_group
        found = self.criterion.parts(
            anchors.transpose(0, 1).flatten(0, 1), targets, self.head.weight, self.sharpening
        )
        of_targets = views.use_of_prototypes(found)
        return {"loss": found.loss, **of_targets, "spread": views.spread(anchors[:, 0])}

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum: linear from its start to 1."""
        return {"momentum": self.momentum + (1 - self.momentum) * progress.part}

    def param_groups(self) -> list[dict[str, Any]]:
        """As of every method, the prototypes apart: they take no weight decay."""
        return views.set_apart(param_groups(self), [self.head.weight], weight_decay=0.0)

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the targets."""
        return [self.teacher]

    def exported(self) -> torch.nn.Module:
        """The teacher's encoder, which the paper evaluates."""
        return views.network_of(self.teacher).encoder

    def check_views(self, recipe: Any) -> None:
        """Refuse recipes that do not begin with two large views."""
        views.check_global_views(recipe, 2)

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The second view, and what the student sees of it."""
        ids = self.visible(batch, ctx)
        seen = {} if ids is None else {"seen": ids}
        return masked.visible_only(batch.views[1], self.encoder, **seen)

    def remarks(self, samples: int) -> list[str]:
        """More prototypes than samples."""
        return views.few_samples(len(self.head.weight), samples)
