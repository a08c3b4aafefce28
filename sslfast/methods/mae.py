"""MAE: an encoder of the visible patches, and a light decoder that predicts the hidden pixels."""

import math

import torch
from torch import Tensor

from sslfast._arguments import Depth, Probability, Width
from sslfast.data.batch import Batch
from sslfast.functional import masked_mse
from sslfast.masking import PatchMask, random_mask
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.masked import denormalized, only_view, patch_numbers, reconstruction
from sslfast.methods.registry import register
from sslfast.models import Decoder, VisionTransformer
from sslfast.models.patches import patchify


@register("mae")
class MAE(Method):
    """Masked autoencoder (arXiv:2111.06377): mean squared error over the hidden patches.

    Args:
        encoder: a VisionTransformer; it runs on the visible patches only.
        mask_ratio: share of hidden patches.
        norm_pix: predict pixels normalised over each patch.
        decoder_dim: its width; None: the paper's 512, or half of an encoder no wider than that.
        decoder_depth: its blocks.
        decoder_heads: of each block; None: as many as are 32 wide, as in the paper.

    Raises:
        ValueError: a ratio that hides no patch or all, an encoder of videos.
    """

    recipe = "mae"
    encoders = VisionTransformer
    reference = Reference(
        "He et al. 2022, arXiv:2111.06377",
        {  # lr: 1.5e-4 * batch_size / 256
            **{"model": "vit_large", "model_args": {"pos_embed": "sincos", "weight_init": "mae"}},
            **{"batch_size": 4096, "epochs": 800, "warmup_epochs": 40, "mask_ratio": 0.75},
            **{"optimizer": "AdamW, betas 0.9 and 0.95", "lr": 2.4e-3, "weight_decay": 0.05},
            **{"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
        },
    )
    encoder: VisionTransformer
    norm_parts = 1  # parts of a patch that are normalised each by itself

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        mask_ratio: Probability = 0.75,
        norm_pix: bool = True,
        decoder_dim: Width | None = None,
        decoder_depth: Depth = 8,
        decoder_heads: Width | None = None,
    ) -> None:
        super().__init__(encoder)
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix
        self.mask(Batch((), torch.arange(0)), Context(0, 0, 1))  # checks the ratio
        self.decoder = Decoder(
            encoder.num_features, decoder_dim, patch_numbers(encoder), decoder_depth,
            encoder.grid_size, encoder.num_prefix_tokens, decoder_heads,
        )  # fmt: skip

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, ...]:
        """Predictions and true patches [B, L, P], and what was hidden, bool [B, L]."""
        return self.reconstruct(only_view(batch), self.mask(batch, ctx))[1]

    def reconstruct(
        self, images: Tensor, hidden: PatchMask
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The encoder's visible tokens [B, P + K, D], and what ``encode`` returns."""
        ids_keep, ids_restore, mask = hidden
        target = self.pixels(patchify(images, self.encoder.patch_size))
        tokens = self.encoder.forward_features(images, ids_keep)
        prediction = self.decoder(tokens, ids_restore)
        return tokens, (prediction.to(target.dtype), target, mask)

    def pixels(self, patches: Tensor, back: bool = False) -> Tensor:
        """What is predicted of normalised patches [B, L, P], or the way back: themselves."""
        return patches

    def loss(self, outputs: tuple[Tensor, ...], ctx: Context) -> dict[str, Tensor]:
        """The error over hidden patches, in units of a patch's variance with ``norm_pix``."""
        *both, mask = outputs
        prediction, target = (x.unflatten(2, (self.norm_parts, -1)).flatten(1, 2) for x in both)
        hidden = mask.repeat_interleave(self.norm_parts, 1)
        return {"loss": masked_mse(prediction, target, hidden, norm_target=self.norm_pix)}

    def mask(self, batch: Batch, ctx: Context) -> PatchMask:
        """What each sample hides in this step: the same on any number of ranks."""
        ids, length = batch.sample_ids, math.prod(self.encoder.grid_size)
        return random_mask(
            len(ids), length, self.mask_ratio, seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids
        )

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Original, masked and reconstructed; with ``norm_pix`` in the true patch's statistics."""
        prediction, target, mask = self.reconstruct(only_view(batch), self.mask(batch, ctx))[1]
        if self.norm_pix:
            prediction = denormalized(prediction, target, self.norm_parts)
        original, predicted = (self.pixels(x, back=True) for x in (target, prediction))
        return reconstruction(original, predicted, mask, self.encoder)
