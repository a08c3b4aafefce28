"""MoCo v3: both views predict a teacher's keys of the other, among those of the whole batch."""

from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import InfoNCE
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import cosine_momentum, similarity, spread
from sslfast.models import ProjectionHead

Outputs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@register("mocov3")
class MoCoV3(Method):
    """MoCo v3 (arXiv:2104.02057): 2 T InfoNCE of predictions and keys, over both directions.

    Keys of all ranks are compared. The patch projection of a Vision Transformer stays as it was
    drawn, which keeps training stable (section 4.2). Heads are the published code's: of a ViT the
    projector has three layers, of other encoders two; batch norm ends them, but not the predictor
    of other encoders.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        temperature: T; the paper takes 0.2 for ViT, 1 for ResNet-50.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
        hidden_dim: width of the heads' hidden layers.
        out_dim: width of the embeddings.
        freeze_patches: leave a ViT's patch projection as it is; others have none.
    """

    recipe = "byol"
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Chen, Xie and He 2021, arXiv:2104.02057",
        {
            **{"model": "vit_small", "model_args": {"num_heads": 12, "pos_embed": "sincos"}},
            **{
                "batch_size": 4096,
                "epochs": 300,
                "warmup_epochs": 40,
                "optimizer": "AdamW",
                "weight_decay": 0.1,
            },
            **{"lr": 2.4e-3, "temperature": 0.2, "momentum": 0.99},  # lr: 1.5e-4 * 4096 / 256
            **{"hidden_dim": 4096, "out_dim": 256},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        temperature: PositiveFloat = 0.2,
        momentum: Probability = 0.99,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        freeze_patches: bool = True,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        patches = getattr(encoder, "patch_embed", None)  # of timm's Vision Transformers too
        is_vit = isinstance(patches, nn.Module)
        if patches is not None and is_vit and freeze_patches:
            patches.requires_grad_(False)
        normed = {"last_batch_norm": True, "last_affine": False}
        hidden = [hidden_dim] * (2 if is_vit else 1)
        self.student = nn.Sequential(encoder, ProjectionHead(features, hidden, out_dim, **normed))
        of_predictor = normed if is_vit else {"last_bias": False}
        self.predictor = ProjectionHead(out_dim, [hidden_dim], out_dim, **of_predictor)
        self.momentum, self.teacher = momentum, EMATeacher(self.student, momentum)
        self.temperature, self.criterion = temperature, InfoNCE(temperature)

    def encode(self, batch: Batch, ctx: Context) -> Outputs:
        """Views 2 x [B, C, H, W] -> predictions and the teacher's keys, 2 x [B, out_dim]."""
        first, second = batch.views
        predicted = self.predictor(self.student(first)), self.predictor(self.student(second))
        self.teacher.train()  # batch norm by its own batches
        return predicted, (self.teacher(first), self.teacher(second))

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """The sum over both directions, the similarity of positives, and the keys' spread."""
        (q0, q1), (k0, k1) = outputs
        self.criterion.process_group = ctx.process_group
        loss = 2 * self.temperature * (self.criterion(q0, k1) + self.criterion(q1, k0))
        return {"loss": loss, "positive_similarity": similarity(q0, k1), "spread": spread(k0)}

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum."""
        return {"momentum": cosine_momentum(self.momentum, progress)}

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the keys."""
        return [self.teacher]
