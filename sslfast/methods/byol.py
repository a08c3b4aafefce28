"""BYOL: predict what a moving average of the network makes of the other view; nothing repels."""

from torch import Tensor, nn

from sslfast._arguments import Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import NegativeCosineSimilarity
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import cosine_momentum, spread
from sslfast.models import ProjectionHead

Outputs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@register("byol")
class BYOL(Method):
    """BYOL (arXiv:2006.07733): 2 - 2 cos(prediction, target), over both directions (equation 2).

    Each view passes the network by itself, batch norm with its own statistics; the teacher's batch
    norm too takes those of the batch, as in the published code.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        hidden_dim: width of the hidden layer of projector and predictor.
        out_dim: width of the embeddings.
        momentum: of the teacher at the start; it rises to 1 by a cosine. The paper takes 0.996 for
            1,000 epochs, its code 0.99 for 300; a short run wants less.
    """

    recipe = "byol"
    smallest_batch = 2
    reference = Reference(
        "Grill et al. 2020, arXiv:2006.07733",
        {
            **{"model": "resnet50", "batch_size": 4096, "epochs": 1000, "warmup_epochs": 10},
            **{"optimizer": "LARS", "lr": 3.2, "weight_decay": 1.5e-6},  # lr: 0.2 * 4096 / 256
            **{"hidden_dim": 4096, "out_dim": 256, "momentum": 0.996},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        momentum: Probability = 0.996,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        projector = ProjectionHead(features, [hidden_dim], out_dim, last_bias=False)
        self.student = nn.Sequential(encoder, projector)
        self.predictor = ProjectionHead(out_dim, [hidden_dim], out_dim, last_bias=False)
        self.momentum, self.teacher = momentum, EMATeacher(self.student, momentum)
        self.criterion = NegativeCosineSimilarity()

    def encode(self, batch: Batch, ctx: Context) -> Outputs:
        """Views 2 x [B, C, H, W] -> predictions and the teacher's embeddings, 2 x [B, out_dim]."""
        first, second = batch.views
        predicted = self.predictor(self.student(first)), self.predictor(self.student(second))
        self.teacher.train()
        return predicted, (self.teacher(first), self.teacher(second))

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """The sum over both directions, and how far the teacher's embeddings spread."""
        (p0, p1), (z0, z1) = outputs
        loss = 4 + 2 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return {"loss": loss, "spread": spread(z0)}

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum."""
        return {"momentum": cosine_momentum(self.momentum, progress)}

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the targets."""
        return [self.teacher]
