"""I-JEPA: predict an EMA teacher's features of target blocks from a context block."""

import torch
from torch import Tensor, nn

from sslfast._arguments import Depth, NonNegativeFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.functional import gather_patches
from sslfast.losses import VICRegLoss
from sslfast.masking import MultiBlockMask, multiblock_mask
from sslfast.methods import masked
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.models import Predictor, VisionTransformer


@register("ijepa")
class IJEPA(Method):
    """I-JEPA (arXiv:2301.08243): smooth L1 between predicted and true features of target blocks.

    Args:
        encoder: a VisionTransformer whose features are the mean of the patches' tokens.
        predictor_dim: its width; None: 384, or half of an encoder that is no wider than that.
        predictor_depth: its blocks.
        predictor_heads: of each block, in the paper the encoder's; None: as many as are 32 wide.
        momentum: of the teacher at the start; it rises linearly to 1.
        vicreg: weight of the variance and covariance, as VICReg weighs those of a view (25 / 2 and
            1), of the context's features, each image's mean over its patches; 0: as published. In
            short runs features else keep but few directions. After C-JEPA (Mo and Tong 2024,
            arXiv:2410.19560); of which features to take them is our reading.

    Raises:
        ValueError: features of a class token, fewer than four patches, an encoder of videos.
    """

    recipe = "ijepa"
    encoders = VisionTransformer
    reference = Reference(
        "Assran et al. 2023, arXiv:2301.08243",
        {  # the published code lets the weight decay rise to 0.4
            **{"model": "vit_huge", "model_args": {**masked.PATCHES_ONLY, "fix_init": True}},
            **{"batch_size": 2048, "epochs": 300, "warmup_epochs": 40, "optimizer": "AdamW"},
            **{"lr": 1e-3, "weight_decay": 0.04, "predictor_heads": 16, "predictor_depth": 12},
        },
    )
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        predictor_dim: Width | None = None,
        predictor_depth: Depth = 6,
        predictor_heads: Width | None = None,
        momentum: Probability = 0.996,
        vicreg: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(encoder)
        masked.check_patches(encoder, "I-JEPA", least=4)  # of fewer, targets may cover all
        self.vicreg, self.regularizer = vicreg, VICRegLoss(gather_distributed=True)
        self.contrastive = vicreg > 0
        self.momentum, self.teacher = momentum, EMATeacher(encoder, momentum)
        shape = predictor_dim, predictor_depth, encoder.grid_size, predictor_heads
        self.predictor = Predictor(encoder.num_features, *shape)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true (the teacher's, layer-normed) tokens of targets, [B, T, N, D].

        Then the means of the context's features [B, D].
        """
        images, blocks = masked.only_view(batch), self.mask(batch, ctx)
        first = self.encoder.num_prefix_tokens
        self.teacher.eval()  # without stochastic depth
        with torch.no_grad():
            whole = self.teacher.module.forward_features(images)[:, first:]  # type: ignore[operator]
            target = gather_patches(whole, blocks.targets.flatten(1))
        context = self.encoder.forward_features(images, blocks.context)[:, first:]
        prediction = self.predictor(context, *blocks)
        target = nn.functional.layer_norm(target, target.shape[-1:]).view_as(prediction)
        return prediction.to(target.dtype), target, context.mean(1)

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Smooth L1, and the spread of the teacher's features over patches (0: collapsed)."""
        prediction, target, means = outputs
        loss = nn.functional.smooth_l1_loss(prediction, target)
        if self.vicreg:
            loss = loss + self.vicreg * self.regularizer.of_view(means)
        return {"loss": loss, "target_std": target.flatten(0, 2).std(0).mean()}

    @torch.compiler.disable  # sizes are drawn on the host
    def mask(self, batch: Batch, ctx: Context) -> MultiBlockMask:
        """Context and targets of each sample in this step: the same on any number of ranks."""
        ids, grid = batch.sample_ids, masked.image_grid(self.encoder)
        return multiblock_mask(len(ids), grid, seed=ctx.seed, step=ctx.step, sample_ids=ids)

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum: linear from its start to 1."""
        return {"momentum": self.momentum + (1 - self.momentum) * progress.part}

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the targets."""
        return [self.teacher]

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Original, the context, and the patches that are to be predicted from it."""
        blocks = self.mask(batch, ctx)
        shown = {"context": blocks.context, "targets": blocks.targets.flatten(1)}
        return masked.visible_only(masked.only_view(batch), self.encoder, **shown)
