"""SimMIM: the encoder sees mask tokens for hidden patches, and a linear head predicts these."""

import math

import torch
from torch import Tensor, nn

from sslfast._arguments import PositiveInt, Probability
from sslfast.data.batch import Batch
from sslfast.masking import as_patch_mask, random_mask
from sslfast.methods import masked
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer
from sslfast.models.patches import patchify


@register("simmim")
class SimMIM(Method):
    """SimMIM (arXiv:2111.09886): mean absolute error over the pixels of hidden patches.

    Args:
        encoder: a VisionTransformer; it runs on all patches.
        mask_ratio: share of hidden squares, rounded up.
        mask_patches: side of a hidden square, in patches; the paper hides 32 of 224 pixels at once,
            2 patches of 16.

    Raises:
        ValueError: a grid of patches that is no whole number of such squares, a ratio that hides no
            square or all, an encoder of videos.
    """

    recipe = "simmim"
    encoders = VisionTransformer
    reference = Reference(
        "Xie et al. 2022, arXiv:2111.09886",
        {  # lr: 1e-4 * batch_size / 256
            **{"model": "vit_base", "batch_size": 2048, "epochs": 800, "optimizer": "AdamW"},
            **{"lr": 8e-4, "weight_decay": 0.05, "warmup_epochs": 10, "mask_ratio": 0.6},
        },
    )
    encoder: VisionTransformer

    def __init__(
        self, encoder: VisionTransformer, *,
        mask_ratio: Probability = 0.6, mask_patches: PositiveInt = 2,
    ) -> None:  # fmt: skip
        super().__init__(encoder)
        rows, columns = masked.image_grid(encoder)
        if rows % mask_patches or columns % mask_patches:
            raise ValueError(
                f"mask_patches={mask_patches} does not divide the grid of {rows} x {columns} "
                "patches: choose one that does"
            )
        self.mask_ratio, self.mask_patches = mask_ratio, mask_patches
        squares = rows * columns // mask_patches**2
        self.num_masked = masked.hidden_number(mask_ratio, squares, math.ceil)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.num_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(encoder.num_features, masked.patch_numbers(encoder))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"mask_token"}

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions and true patches [B, L, P], and what was hidden, bool [B, L]."""
        images, encoder = masked.only_view(batch), self.encoder
        mask, keep = self.mask(batch, ctx)
        seen, ids_restore, _ = as_patch_mask(mask, keep)
        encoded = masked.encode_masked(encoder, images, self.mask_token, seen, ids_restore)
        target = patchify(images, encoder.patch_size)
        return self.head(encoded).to(target.dtype), target, mask

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """The error over hidden patches, in units of the normalised pixels."""
        prediction, target, mask = outputs
        errors = (prediction - target).abs().mean(-1)
        return {"loss": (errors * mask).sum() / mask.sum()}

    def mask(self, batch: Batch, ctx: Context) -> tuple[Tensor, int]:
        """What each sample hides in this step, bool [B, L], and how many patches it shows."""
        side, ids = self.mask_patches, batch.sample_ids
        rows, columns = (n // side for n in masked.image_grid(self.encoder))
        squares = random_mask(
            len(ids), rows * columns, num_masked=self.num_masked,
            seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids,
        )  # fmt: skip
        mask = squares.mask.view(-1, rows, columns)
        mask = mask.repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1)
        return mask, squares.ids_keep.shape[1] * side**2

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Original, masked and reconstructed."""
        prediction, target, mask = self.encode(batch, ctx)
        return masked.reconstruction(target, prediction, mask, self.encoder)
