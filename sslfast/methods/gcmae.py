"""GCMAE: MAE, and a contrast of every image with the features that it had an epoch ago."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import (
    Depth,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Width,
)
from sslfast.data.batch import Batch
from sslfast.functional import linear_cross_entropy
from sslfast.kernels.exchange import gather_rows, name_of
from sslfast.kernels.unit_rows.op import wide_unit_rows
from sslfast.methods.base import Context, Reference
from sslfast.methods.mae import MAE
from sslfast.methods.masked import only_view
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer


@register("gcmae")
class GCMAE(MAE):
    """Global contrast-masked autoencoder of images (arXiv:2205.09048): MAE, and a contrast.

    (Of graphs, another method has this name: arXiv:2310.18709.) The mean of an image's visible
    tokens is to be likest to its own row of a bank, which holds a moving average of that image's
    means: cross-entropy over all rows, as in instance discrimination (Wu et al. 2018). The paper
    estimates this from 8,192 rows at random, and a constant that the first batch fixes (NCE); here
    it is computed. Images that have no row yet, in the first epoch, count as 0; rows that no image
    has taken are random directions, which repel. The mean is over all tokens, a class token too.

    Sample n has row n modulo ``bank_size``: make it as large as the data set, as in the paper. In a
    smaller one images take each other's rows: what none finds again has no contrast.

    Args:
        encoder: a VisionTransformer; it runs on the visible patches only.
        contrast_weight: of the contrast beside MAE's loss.
        temperature: of the softmax over rows.
        bank_size: rows; each takes as many numbers as the encoder is wide, in every checkpoint.
        bank_momentum: what a row keeps of itself when its image is seen again.
        mask_ratio: of MAE, as all that follow.
        norm_pix: see there.
        decoder_dim: see there.
        decoder_depth: see there.
        decoder_heads: see there.

    Raises:
        ValueError: as MAE.
    """

    bank: Tensor
    owners: Tensor
    reference = Reference(
        "Quan et al. 2022, arXiv:2205.09048",
        {  # of pathology slides; lr: 1e-3 * batch_size / 256
            **{"model": "vit_base", "model_args": {"pos_embed": "sincos", "weight_init": "mae"}},
            **{"batch_size": 128, "epochs": 80, "warmup_epochs": 40, "mask_ratio": 0.5},
            **{"optimizer": "AdamW, betas 0.9 and 0.95", "lr": 5e-4, "weight_decay": 0.05},
            **{"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
            **{"contrast_weight": 0.1, "temperature": 0.07, "bank_momentum": 0.5},
        },
    )

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        contrast_weight: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.07,
        bank_size: PositiveInt = 8192,
        bank_momentum: Probability = 0.5,
        mask_ratio: Probability = 0.5,
        norm_pix: bool = True,
        decoder_dim: Width | None = None,
        decoder_depth: Depth = 8,
        decoder_heads: Width | None = None,
    ) -> None:
        super().__init__(
            encoder, mask_ratio=mask_ratio, norm_pix=norm_pix, decoder_dim=decoder_dim,
            decoder_depth=decoder_depth, decoder_heads=decoder_heads,
        )  # fmt: skip
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.bank_momentum = bank_momentum
        rows = torch.randn(bank_size, encoder.num_features)
        self.register_buffer("bank", F.normalize(rows, dim=1))
        self.register_buffer("owners", torch.full((bank_size,), -1))  # sample ids

    def remarks(self, samples: int) -> list[str]:
        """A bank in which images take each other's rows."""
        size = len(self.bank)
        if size >= samples:
            return []
        return [
            f"the bank of {size} rows is smaller than the {samples} samples, which take each "
            "other's rows: there is little contrast, or none (method_args.bank_size)"
        ]

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, ...]:
        """What MAE's returns, the images' unit features [B, D], and their ids int64 [B]."""
        tokens, outputs = self.reconstruct(only_view(batch), self.mask(batch, ctx))
        return *outputs, wide_unit_rows(tokens.mean(1)), batch.sample_ids

    def loss(self, outputs: tuple[Tensor, ...], ctx: Context) -> dict[str, Tensor]:
        """Both losses weighted, each alone, and the share of images that have a row ("known").

        The bank takes up the images, of all ranks, when this is done.
        """
        prediction, target, mask, features, ids = outputs
        mae = super().loss((prediction, target, mask), ctx)["loss"]
        places = ids % len(self.bank)
        known = self.owners[places] == ids
        contrast = linear_cross_entropy(
            features / self.temperature, self.bank, places.where(known, -1),
            ignore_index=-1, reduction="sum",
        ) / len(ids)  # fmt: skip
        if torch.is_grad_enabled():
            self.take_up(features, ids, ctx)
        return {
            "loss": mae + self.contrast_weight * contrast,
            "reconstruction": mae.detach(),
            "contrast": contrast.detach(),
            "known": known.float().mean(),
        }

    @torch.no_grad()
    def take_up(self, features: Tensor, ids: Tensor, ctx: Context) -> None:
        """Move the images' rows towards their features; a new image's row is these."""
        if ctx.world_size > 1:  # so that all ranks hold the same
            group = name_of(ctx.process_group)
            features, ids = gather_rows(features, group)[0], gather_rows(ids, group)[0]
        places = ids % len(self.bank)
        # Of images that share a row, the last has it: all write the same, in whatever order.
        numbers = torch.arange(len(ids), device=ids.device)
        last = torch.where(places[:, None] == places, numbers, -1).amax(1)
        features, ids = features[last].to(self.bank.dtype), ids[last]
        kept = self.bank_momentum * (self.owners[places] == ids)[:, None]
        rows = F.normalize(kept * self.bank[places] + (1 - kept) * features, dim=1)
        self.bank.index_copy_(0, places, rows)
        self.owners.index_copy_(0, places, ids)
