"""VICReg: views agree, every dimension varies, and dimensions do not vary together."""

from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, Width
from sslfast.data.batch import Batch
from sslfast.losses import VICRegLoss
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import spread
from sslfast.models import ProjectionHead


@register("vicreg")
class VICReg(Method):
    """VICReg (arXiv:2105.04906): invariance, variance and covariance terms (equation 6).

    Variances and covariances are those of the batches of all ranks.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        sim_coeff: of the squared distance of the views, a mean over dimensions.
        std_coeff: of the hinge that keeps every dimension's deviation at 1.
        cov_coeff: of the squared covariances off the diagonal.
        hidden_dim: width of the expander's two hidden layers.
        out_dim: width of the embeddings.
    """

    recipe = "byol"
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Bardes, Ponce and LeCun 2021, arXiv:2105.04906",
        {
            **{"model": "resnet50", "batch_size": 2048, "epochs": 1000, "warmup_epochs": 10},
            **{"optimizer": "LARS", "lr": 1.6, "weight_decay": 1e-6},  # lr: 0.2 * 2048 / 256
            **{"sim_coeff": 25, "std_coeff": 25, "cov_coeff": 1, "out_dim": 8192},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        sim_coeff: NonNegativeFloat = 25.0,
        std_coeff: NonNegativeFloat = 25.0,
        cov_coeff: NonNegativeFloat = 1.0,
        hidden_dim: Width = 8192,
        out_dim: Width = 8192,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.expander = ProjectionHead(
            features, [hidden_dim] * 2, out_dim, bias=True, last_bias=False
        )
        self.criterion = VICRegLoss(sim_coeff, std_coeff, cov_coeff, gather_distributed=True)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Views 2 x [B, C, H, W] -> embeddings 2 x [B, out_dim]."""
        first, second = batch.views
        return self.expander(self.encoder(first)), self.expander(self.encoder(second))

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """The loss and its parts, and how far the embeddings spread."""
        return {**self.criterion.parts(*outputs), "spread": spread(outputs[0])}
