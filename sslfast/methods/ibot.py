"""iBOT: DINO, and the same for masked patches: the student tells what the teacher sees there."""

from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, Part, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import IBOTPatchLoss
from sslfast.losses.dino import linear_warmup
from sslfast.masking import SpreadMask
from sslfast.methods import masked
from sslfast.methods.base import Context, Progress, Reference
from sslfast.methods.dino import DINO, GLOBAL, Outputs
from sslfast.methods.registry import register
from sslfast.methods.views import Network, network_of, use_batch_statistics
from sslfast.models import PrototypeHead, VisionTransformer
from sslfast.models.crops import encode_crops


@register("ibot")
class IBOT(DINO):
    """iBOT (arXiv:2111.07832): DINO's loss of class tokens, and equation 2 of masked patches.

    Half of the global views that the student sees have blocks of patches behind a mask token, of
    evenly spread sizes (``sslfast.masking.spread_mask``). Small crops are whole.

    Args:
        encoder: a VisionTransformer.
        patch_weight: factor of the patches' loss.
        mask_ratios: smallest and largest share of hidden patches of a masked view.
        mask_probability: share of the views that are masked.
        patch_head: a head of its own for patches; the published runs share one.
        patch_out_dim: its prototypes.
        warmup_patch_temperature: the teacher's of patches in the first epoch.
        patch_temperature: after its warm-up, which takes as long as that of class tokens.
        out_dim: of DINO, as the other options.
        **options: see there.
    """

    encoders = VisionTransformer
    reference = Reference(
        "Zhou et al. 2022, arXiv:2111.07832",
        {
            **{"model": "vit_small", "batch_size": 1024, "epochs": 800, "warmup_epochs": 10},
            **{"model_args": {"dynamic_img_size": True, "drop_path_rate": 0.1}},
            **{"optimizer": "AdamW", "lr": 2e-3, "min_lr": 1e-6},  # lr: 5e-4 * 1024 / 256
            **{"weight_decay": 0.04, "weight_decay_end": 0.4, "out_dim": 8192, "momentum": 0.996},
            **{"student_temperature": 0.1, "teacher_temperature": 0.07, "patch_temperature": 0.07},
            **{"mask_ratios": (0.1, 0.5), "mask_probability": 0.5},
        },
    )
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        patch_weight: NonNegativeFloat = 1.0,
        mask_ratios: tuple[Probability, Probability] = (0.1, 0.5),
        mask_probability: Part = 0.5,
        patch_head: bool = False,
        patch_out_dim: Width = 8192,
        warmup_patch_temperature: PositiveFloat = 0.04,
        patch_temperature: PositiveFloat = 0.07,
        out_dim: Width = 8192,
        **options: Any,
    ) -> None:
        super().__init__(encoder, out_dim=out_dim, **options)
        self.patch_weight = patch_weight
        self.mask_ratios, self.mask_probability = mask_ratios, mask_probability
        self.patch_temperatures = warmup_patch_temperature, patch_temperature
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.num_features))
        if patch_head:
            settings = {**self.head.settings, "out_dim": patch_out_dim}
            self.student.patch_head = PrototypeHead(**settings)
            self.teacher = EMATeacher(self.student, self.momentum)
        self.patch_criterion = IBOTPatchLoss(
            patch_out_dim if patch_head else out_dim, patch_temperature,
            self.criterion.student_temp, self.criterion.center_mode, self.criterion.center_momentum,
        )  # fmt: skip

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"mask_token"}

    def encode(self, batch: Batch, ctx: Context) -> Outputs:
        """DINO's unit vectors; of hidden patches, teacher's and student's [N, D] and the weights.

        And the student's features of the global views [B, F].
        """
        views, encoder = batch.views, self.encoder
        hidden, images = self.masks(batch, ctx), torch.cat(views[:GLOBAL])
        use_batch_statistics(self.teacher)
        with torch.no_grad():
            net = network_of(self.teacher)
            seen = net.encoder.forward_features(images)  # type: ignore[operator]
            teacher, patches, _ = self._heads(net, seen, hidden)
        tokens = masked.embed_masked(encoder, images, self.mask_token, hidden.mask)
        tokens = encoder.transform(tokens, encoder.grid_of(images))
        student, predicted, features = self._heads(self.student, tokens, hidden)
        crops = encode_crops(self.student, views[GLOBAL:])
        of_patches = patches, predicted, hidden.weight
        each = [[*x.chunk(GLOBAL)] for x in (teacher, student, features)]
        return each[0], each[1] + crops, of_patches, each[2]

    @staticmethod
    def _heads(net: Network, tokens: Tensor, hidden: SpreadMask) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of images and of hidden patches, and features, from encoded tokens."""
        assert isinstance(net.encoder, VisionTransformer)
        features = net.encoder.forward_head(tokens)
        patches = tokens[:, net.encoder.num_prefix_tokens :].flatten(0, 1)[hidden.ids]
        return net.head(features), (net.patch_head or net.head)(patches), features

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """The sum of both losses; of DINO's what it returns, and each alone."""
        teacher, student, (patches, predicted, weight), _ = outputs
        values = super().loss((teacher, student), ctx)
        self.patch_criterion.process_group = ctx.process_group
        net = network_of(self.teacher)
        of_teacher = (net.patch_head or net.head).prototypes().detach()
        of_student = (self.student.patch_head or self.head).prototypes()
        found = self.patch_criterion.parts(
            patches, predicted, weight, GLOBAL * len(teacher[0]),
            ctx.schedules.get("patch_temperature"), weight=of_student, teacher_weight=of_teacher,
        )  # fmt: skip
        alone = {"class_loss": values["loss"].detach(), "patch_loss": found.loss.detach()}
        return {**values, **alone, "loss": values["loss"] + self.patch_weight * found.loss}

    def schedules(self, progress: Progress) -> dict[str, float]:
        """Those of DINO, and the teacher's temperature of patches."""
        steps = self.criterion.warmup_teacher_temp_epochs
        temperature = linear_warmup(*self.patch_temperatures, steps, int(progress.epoch))
        return {**super().schedules(progress), "patch_temperature": temperature}

    def masks(self, batch: Batch, ctx: Context) -> SpreadMask:
        """What the global views hide in this step, one view's images after the other's."""
        shares = self.mask_ratios, self.mask_probability
        return masked.spread_masks(self.encoder, batch, ctx, GLOBAL, *shares)
