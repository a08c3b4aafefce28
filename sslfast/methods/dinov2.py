"""DINOv2: iBOT, and features of the images of a batch that keep apart from each other."""

from typing import Any

from torch import Tensor

from sslfast._arguments import NonNegativeFloat, Width
from sslfast.losses import KoLeoLoss
from sslfast.methods.base import Context, Reference
from sslfast.methods.ibot import IBOT, Outputs
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer


@register("dinov2")
class DINOv2(IBOT):
    """DINOv2 (arXiv:2304.07193, section 4): iBOT's loss, and KoLeo's of the student's features.

    KoLeo pushes each feature of a global view from its nearest neighbour, here among those of all
    ranks: the published code looks among each rank's own, where one image alone has none.

    Args:
        encoder: a VisionTransformer.
        koleo_weight: of KoLeo beside iBOT's loss; the sum of both global views.
        out_dim: of DINO, as the other options.
        patch_out_dim: of iBOT.
        **options: of iBOT and DINO.
    """

    reference = Reference(
        "Oquab et al. 2023, arXiv:2304.07193",
        {
            **{"model": "vit_large", "batch_size": 2048, "epochs": 100, "warmup_epochs": 10},
            "model_args": {
                **{"dynamic_img_size": True, "init_values": 1e-5, "drop_path_rate": 0.3},
            },
            **{"optimizer": "AdamW", "lr": 5.7e-3, "min_lr": 1e-6},  # lr: 4e-3 * sqrt(2048 / 1024)
            **{"layer_decay": 0.9, "weight_decay": 0.04, "weight_decay_end": 0.4},
            **{"out_dim": 65536, "momentum": 0.992, "koleo_weight": 0.1},
            **{"student_temperature": 0.1, "teacher_temperature": 0.07, "patch_temperature": 0.07},
        },
    )

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        koleo_weight: NonNegativeFloat = 0.1,
        out_dim: Width = 65536,
        patch_out_dim: Width = 65536,
        **options: Any,
    ) -> None:
        super().__init__(encoder, out_dim=out_dim, patch_out_dim=patch_out_dim, **options)
        self.koleo_weight = koleo_weight
        self.koleo = KoLeoLoss(gather_distributed=True)
        self.smallest_batch = 2 if koleo_weight else self.smallest_batch

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """What iBOT returns, and KoLeo: alone, and in the loss."""
        values = super().loss(outputs, ctx)
        if not self.koleo_weight:
            return values
        self.koleo.process_group = ctx.process_group
        first, second = map(self.koleo, outputs[3])
        apart = first + second
        return {
            **values,
            "koleo": apart.detach(),
            "loss": values["loss"] + self.koleo_weight * apart,
        }
