"""LeJEPA: views of an image agree, and embeddings are spread like a normal distribution."""

import torch
from torch import Tensor, nn

from sslfast._arguments import PositiveInt, Probability, Width
from sslfast.data.batch import Batch
from sslfast.losses import LeJEPALoss
from sslfast.losses.sigreg import random_directions
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import spread
from sslfast.models import ProjectionHead
from sslfast.models.crops import encode_crops


@register("lejepa")
class LeJEPA(Method):
    """LeJEPA (arXiv:2511.08544): invariance of all views to the global ones, and SIGReg.

    Neither a teacher nor a stop-gradient: SIGReg alone keeps embeddings apart. Crops of equal size
    pass the encoder together, and all of them the projector. SIGReg is of the batches of all ranks,
    a view at a time, along directions that are drawn anew in every step.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F]; a ViT wants dynamic_img_size for crops
            of two sizes.
        lambda_param: weight of SIGReg; that of the invariance is the rest to 1.
        global_views: so many of the recipe's first views are global: all views are drawn to the
            mean of these.
        num_vectors: directions of SIGReg.
        hidden_dim: width of the projector's two hidden layers.
        out_dim: width of the embeddings.
    """

    recipe = "lejepa"
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Balestriero and LeCun 2025, arXiv:2511.08544",
        {  # batch_size, warmup_epochs and out_dim are ours
            **{"model": "vit_large", "model_args": {"patch_size": 14, "dynamic_img_size": True}},
            **{"batch_size": 512, "epochs": 100, "warmup_epochs": 10, "precision": "bf16"},
            **{"optimizer": "AdamW", "lr": 5e-4, "min_lr": 5e-7, "weight_decay": 5e-2},
            **{"lambda_param": 0.05, "num_vectors": 1024, "hidden_dim": 2048, "out_dim": 128},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        lambda_param: Probability = 0.05,
        global_views: PositiveInt = 2,
        num_vectors: PositiveInt = 1024,
        hidden_dim: Width = 2048,
        out_dim: Width = 128,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.projector = ProjectionHead(features, [hidden_dim] * 2, out_dim)
        self.global_views = global_views
        self.criterion = LeJEPALoss(
            lambda_param, gather_distributed=True, sigreg_num_vectors=num_vectors
        )

    def encode(self, batch: Batch, ctx: Context) -> Tensor:
        """V views [B, C, H, W] -> embeddings [B, V, out_dim]."""
        features = encode_crops(self.encoder, batch.views)
        return self.projector(torch.cat(features)).unflatten(0, (len(features), -1)).transpose(0, 1)

    def loss(self, outputs: Tensor, ctx: Context) -> dict[str, Tensor]:
        """The loss and its parts, and how far the embeddings spread."""
        views, sigreg = outputs.transpose(0, 1), self.criterion.sigreg
        dtype = torch.float64 if outputs.dtype == torch.float64 else torch.float32
        directions = random_directions(
            sigreg.num_vectors, outputs.shape[-1],
            seed=ctx.seed, step=ctx.drawn_step, device=outputs.device, dtype=dtype,
        )  # fmt: skip
        local = views[self.global_views :] if len(views) > self.global_views else None
        parts = self.criterion.parts(
            global_proj=views[: self.global_views], local_proj=local, directions=directions
        )
        return {**parts, "spread": spread(views[0])}

    def check_views(self, recipe: object) -> None:
        """Refuse fewer views than two, which could agree, or than there shall be global ones."""
        made = len(recipe.views)  # type: ignore[attr-defined]
        if made < max(2, self.global_views):
            raise ValueError(
                f"LeJEPA compares {max(2, self.global_views)} views or more, of which "
                f"{self.global_views} are global (method_args.global_views), and this recipe makes "
                f"{made}: choose the recipe lejepa, or another of more views"
            )
