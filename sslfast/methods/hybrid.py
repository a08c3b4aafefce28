"""Hybrid: MAE on two masks of an image, whose visible patches must also be known for the same."""

import torch
from torch import Tensor

from sslfast._arguments import Depth, NonNegativeFloat, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.losses import NTXentLoss
from sslfast.masking import PatchMask, random_mask
from sslfast.methods.base import Context, Reference
from sslfast.methods.mae import MAE
from sslfast.methods.masked import only_view
from sslfast.methods.registry import register
from sslfast.methods.views import similarity
from sslfast.models import ProjectionHead, VisionTransformer


@register("hybrid")
class Hybrid(MAE):
    """Masked reconstruction and contrast on two independent masks of one view, by one encoder.

    Loss: MAE's over the hidden patches of both masks, plus ``contrast_weight`` times NT-Xent of the
    two means of visible patches, through a projector without batch norm. Over several ranks the
    negatives are the images of all of them.

    No paper is known for the names ESLA and HSL, by which this family is asked for. It follows
    CMAE (arXiv:2207.13532: weight 1, temperature 0.07, but an EMA teacher for the second branch and
    shifted pixels), MACRL (arXiv:2211.06012: two masked branches, both decoded) and CAV-MAE
    (arXiv:2210.07839: a contrast of mean tokens beside MAE's loss, here without sound).

    Args:
        encoder: a VisionTransformer; it runs on the visible patches only, twice.
        contrast_weight: of the contrast beside MAE's loss; 0: MAE, on one mask.
        temperature: of the contrast.
        hidden_dim: of the projector; None: the encoder's width.
        out_dim: width of the embeddings that are compared.
        mask_ratio: of MAE, as all that follow.
        norm_pix: see there.
        decoder_dim: see there.
        decoder_depth: see there.
        decoder_heads: see there.

    Raises:
        ValueError: as MAE; a temperature that is not positive.
    """

    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Huang et al. 2022, arXiv:2207.13532 (CMAE, the nearest relative)",
        {  # lr: 1.5e-4 * batch_size / 256, MAE's
            **{"model": "vit_base", "model_args": {"pos_embed": "sincos", "weight_init": "mae"}},
            **{"batch_size": 4096, "epochs": 800, "warmup_epochs": 40, "mask_ratio": 0.75},
            **{"optimizer": "AdamW, betas 0.9 and 0.95", "lr": 2.4e-3, "weight_decay": 0.05},
            **{"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
            **{"contrast_weight": 1.0, "temperature": 0.07},
        },
    )

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        contrast_weight: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.1,
        hidden_dim: Width | None = None,
        out_dim: Width = 128,
        mask_ratio: Probability = 0.75,
        norm_pix: bool = True,
        decoder_dim: Width | None = None,
        decoder_depth: Depth = 8,
        decoder_heads: Width | None = None,
    ) -> None:
        super().__init__(
            encoder, mask_ratio=mask_ratio, norm_pix=norm_pix, decoder_dim=decoder_dim,
            decoder_depth=decoder_depth, decoder_heads=decoder_heads,
        )  # fmt: skip
        self.contrast_weight, width = contrast_weight, encoder.num_features
        if contrast_weight:
            shape = width, [hidden_dim or width], out_dim
            self.projector = ProjectionHead(*shape, batch_norm=False)
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, ...]:
        """What MAE's returns, of each mask [B, M, L, ...]; of two, embeddings [B, 2, out_dim]."""
        images, masks = only_view(batch), [self.mask(batch, ctx)]
        if self.contrast_weight:
            masks.append(self.second_mask(batch, ctx))
        hidden = PatchMask(*(torch.cat(parts) for parts in zip(*masks, strict=True)))
        tokens, made = self.reconstruct(images.repeat(len(masks), 1, 1, 1), hidden)
        outputs: tuple[Tensor, ...] = made
        if self.contrast_weight:
            seen = tokens[:, self.encoder.num_prefix_tokens :].mean(1)
            outputs = *made, self.projector(seen)
        return tuple(x.unflatten(0, (len(masks), -1)).transpose(0, 1) for x in outputs)

    def loss(self, outputs: tuple[Tensor, ...], ctx: Context) -> dict[str, Tensor]:
        """Both losses weighted, each alone, and the mean cosine of the pairs of embeddings."""
        prediction, target, mask, *embedded = outputs
        hidden = tuple(x.flatten(0, 1) for x in (prediction, target, mask))
        mae = super().loss(hidden, ctx)["loss"]
        if not embedded:
            return {"loss": mae}
        first, second = embedded[0].unbind(1)
        contrast = self.criterion(first, second)
        return {
            "loss": mae + self.contrast_weight * contrast,
            "reconstruction": mae.detach(),
            "contrast": contrast.detach(),
            "positive_similarity": similarity(first, second),
        }

    def second_mask(self, batch: Batch, ctx: Context) -> PatchMask:
        """As ``mask``, drawn independently."""
        ids, patches = batch.sample_ids, self.encoder.grid_size[0] * self.encoder.grid_size[1]
        return random_mask(
            len(ids), patches, self.mask_ratio,
            seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids, stream=1,
        )  # fmt: skip
