"""SimCLR: two augmented views of an image attract, all other images of the batch repel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, Width
from sslfast.data.batch import Batch
from sslfast.losses import NTXentLoss
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.models import ProjectionHead


@register("simclr")
class SimCLR(Method):
    """SimCLR (arXiv:2002.05709): NT-Xent (equation 1) on a two-layer projection of the features.

    Over several ranks the negatives are the images of all of them.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        temperature: of the softmax; the paper takes 0.1 for ImageNet and 0.5 for CIFAR-10.
        hidden_dim: width of the head's hidden layer; None: F, as in the paper.
        out_dim: width of the embeddings that the loss compares.

    Raises:
        ValueError: a width below 1, or a temperature that is not positive.
    """

    recipe = "simclr"
    contrastive = True
    reference = Reference(
        "Chen et al. 2020, arXiv:2002.05709",
        {
            "model": "resnet50",
            "batch_size": 4096,
            "epochs": 100,
            "optimizer": "LARS",
            "lr": 4.8,  # 0.3 * batch_size / 256
            "weight_decay": 1e-6,
            "warmup_epochs": 10,
            "temperature": 0.1,
            "out_dim": 128,
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        temperature: PositiveFloat = 0.1,
        hidden_dim: Width | None = None,
        out_dim: Width = 128,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.projector = ProjectionHead(
            features, [hidden_dim or features], out_dim, last_batch_norm=True
        )
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Views 2 x [B, C, H, W] -> embeddings 2 x [B, out_dim].

        Both views pass the encoder together: batch norm sees their joint statistics, as in the
        paper's implementation.
        """
        first, second = batch.views
        embeddings = self.projector(self.encoder(torch.cat([first, second])))
        z0, z1 = embeddings.chunk(2)
        return z0, z1

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """NT-Xent, and the mean cosine similarity of the positive pairs (1: all attracted)."""
        z0, z1 = outputs
        similarity = F.cosine_similarity(z0.detach().float(), z1.detach().float()).mean()
        return {"loss": self.criterion(z0, z1), "positive_similarity": similarity}
