"""SimSiam: predict the network's own embedding of the other view, whose gradient is stopped."""

from typing import Any

from torch import Tensor, nn

from sslfast._arguments import Depth, Width
from sslfast.data.batch import Batch
from sslfast.losses import NegativeCosineSimilarity
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import spread
from sslfast.models import ProjectionHead
from sslfast.optim import param_groups

Outputs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@register("simsiam")
class SimSiam(Method):
    """SimSiam (arXiv:2011.10566): -cos(prediction, sg(embedding)), mean of both directions.

    A loss of -1 with a spread near 0 is a collapse: too high a learning rate, mostly. The
    predictor's learning rate stays at its peak, as in the paper's table 1 and section 4.2.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        projector_layers: its linear layers; the paper takes 2 for CIFAR-10 (appendix D).
        hidden_dim: width of the projector's hidden layers.
        out_dim: width of the embeddings.
        predictor_dim: width of the predictor's hidden layer, a bottleneck.
    """

    recipe = "moco"
    smallest_batch = 2
    reference = Reference(
        "Chen and He 2020, arXiv:2011.10566",
        {
            **{"model": "resnet50", "batch_size": 512, "epochs": 100, "optimizer": "SGD"},
            **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},  # lr: 0.05 * 512 / 256
            **{"projector_layers": 3, "out_dim": 2048, "predictor_dim": 512},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        projector_layers: Depth = 3,
        hidden_dim: Width = 2048,
        out_dim: Width = 2048,
        predictor_dim: Width = 512,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        hidden = [hidden_dim] * (projector_layers - 1)
        self.projector = ProjectionHead(
            features, hidden, out_dim, last_batch_norm=True, last_affine=False
        )
        self.predictor = ProjectionHead(out_dim, [predictor_dim], out_dim)
        self.criterion = NegativeCosineSimilarity()

    def encode(self, batch: Batch, ctx: Context) -> Outputs:
        """Views 2 x [B, C, H, W] -> predictions and embeddings, 2 x [B, out_dim]."""
        first, second = batch.views
        z0, z1 = self.projector(self.encoder(first)), self.projector(self.encoder(second))
        return (self.predictor(z0), self.predictor(z1)), (z0, z1)

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """The mean of both directions (-1: all agree), and how far the embeddings spread."""
        (p0, p1), (z0, z1) = outputs
        loss = (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2
        return {"loss": loss, "spread": spread(z0)}

    def param_groups(self) -> list[dict[str, Any]]:
        """As of every method, the predictor's apart: their learning rate does not fall."""
        own = set(self.predictor.parameters())
        groups = []
        for group in param_groups(self):
            for held in (False, True):
                chosen = [p for p in group["params"] if (p in own) == held]
                if chosen:
                    groups.append({**group, "params": chosen, "fix_lr": held})
        return groups
