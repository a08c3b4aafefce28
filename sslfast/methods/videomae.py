"""VideoMAE: MAE on videos, with the same patches hidden in every frame."""

import torch
from torch import Tensor

from sslfast._arguments import Depth, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.data.views.view import IMAGENET_MEAN, IMAGENET_STD
from sslfast.masking import PatchMask, tube_mask
from sslfast.methods.base import Context, Reference
from sslfast.methods.mae import MAE
from sslfast.methods.masked import PATCHES_ONLY
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer


@register("videomae")
class VideoMAE(MAE):
    """VideoMAE (arXiv:2203.12602): mean squared error over the hidden cubes of a clip.

    A token is a cube, a patch through ``tubelet_size`` frames. As published, each channel of a cube
    is normalised by itself; without ``norm_pix``, pixels from 0 to 1 are predicted.

    Args:
        encoder: a VisionTransformer with num_frames; it runs on the visible cubes only.
        mask_ratio: share of hidden cubes.
        norm_pix: predict pixels normalised over each channel of a cube.
        decoder_dim: width of the decoder; None: half of the encoder's.
        decoder_depth: its blocks.
        decoder_heads: of each block; None: as many as are 32 wide (published: 64).
        mean: the recipe's, of each channel; read without ``norm_pix`` only.
        std: likewise.

    Raises:
        ValueError: a ratio that hides no cube or all, an encoder of images; without ``norm_pix``,
            a mean or std of another number of channels than the encoder's.
    """

    recipe = "videomae"
    modalities = ("video",)
    mean: Tensor
    std: Tensor
    reference = Reference(
        "Tong et al. 2022, arXiv:2203.12602",
        {  # lr: 1.5e-4 * batch_size / 256; model and data as published for Kinetics-400
            **{"model": "vit_base", "batch_size": 1024, "epochs": 800},
            "model_args": {**PATCHES_ONLY, "num_frames": 16, "weight_init": "mae"},
            **{"optimizer": "AdamW, betas 0.9 and 0.95", "lr": 6e-4, "weight_decay": 0.05},
            **{"warmup_epochs": 40, "mask_ratio": 0.9, "decoder_dim": 384, "decoder_depth": 4},
            **{"decoder_heads": 6, "recipe_args": {"num_frames": 16, "sampling_rate": 4}},
        },
    )

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        mask_ratio: Probability = 0.9,
        norm_pix: bool = True,
        decoder_dim: Width | None = None,
        decoder_depth: Depth = 4,
        decoder_heads: Width | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[PositiveFloat, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__(
            encoder, mask_ratio=mask_ratio, norm_pix=norm_pix,
            decoder_dim=decoder_dim or encoder.num_features // 2,
            decoder_depth=decoder_depth, decoder_heads=decoder_heads,
        )  # fmt: skip
        self.norm_parts = channels = encoder.patch_embed.proj.in_channels
        if not norm_pix and not len(mean) == len(std) == channels:
            raise ValueError(
                f"without norm_pix, mean and std need the {channels} numbers of the recipe, got "
                f"{list(mean)} and {list(std)}"
            )
        for name, numbers in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(numbers)[:, None], persistent=False)

    def pixels(self, patches: Tensor, back: bool = False) -> Tensor:
        """Normalised cubes [B, L, P] -> cubes from 0 to 1, or back; as they are with norm_pix."""
        if self.norm_pix:
            return patches
        channels = patches.unflatten(2, (self.norm_parts, -1))
        mean, std = (t.to(patches.dtype) for t in (self.mean, self.std))
        return ((channels - mean) / std if back else channels * std + mean).flatten(2)

    def mask(self, batch: Batch, ctx: Context) -> PatchMask:
        """What each sample hides in this step: the same on any number of ranks."""
        ids, (frames, rows, columns) = batch.sample_ids, self.encoder.grid_size
        return tube_mask(
            len(ids), frames, rows * columns, self.mask_ratio,
            seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids,
        )  # fmt: skip
