"""VideoMAE: MAE on videos, with the same patches hidden in every frame."""

from sslfast._arguments import Depth, Probability, Width
from sslfast.data.batch import Batch
from sslfast.masking import PatchMask, tube_mask
from sslfast.methods.base import Context, Reference
from sslfast.methods.mae import MAE
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer


@register("videomae")
class VideoMAE(MAE):
    """VideoMAE (arXiv:2203.12602): mean squared error over the hidden cubes of a clip.

    A token is a cube, a patch through ``tubelet_size`` frames. As in the published code, each
    channel of a cube is normalised by itself.

    Args:
        encoder: a VisionTransformer with num_frames; it runs on the visible cubes only.
        mask_ratio: share of hidden cubes.
        norm_pix: predict pixels normalised over each channel of a cube.
        decoder_dim: width of the decoder; None: half of the encoder's.
        decoder_depth: its blocks.

    Raises:
        ValueError: a ratio that hides no cube or all, an encoder of images.
    """

    recipe = "videomae"
    modalities = ("video",)
    reference = Reference(
        "Tong et al. 2022, arXiv:2203.12602",
        {  # lr: 1.5e-4 * batch_size / 256; model and data as published for Kinetics-400
            **{"model": "vit_base, num_frames 16, tubelet_size 2, sincos positions"},
            **{"batch_size": 1024, "epochs": 800, "optimizer": "AdamW, betas 0.9 and 0.95"},
            **{"lr": 6e-4, "weight_decay": 0.05, "warmup_epochs": 40, "mask_ratio": 0.9},
            **{"num_frames": 16, "sampling_rate": 4},
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
    ) -> None:
        super().__init__(
            encoder,
            mask_ratio=mask_ratio,
            norm_pix=norm_pix,
            decoder_dim=decoder_dim or encoder.num_features // 2,
            decoder_depth=decoder_depth,
        )
        self.norm_parts = encoder.patch_embed.proj.in_channels

    def mask(self, batch: Batch, ctx: Context) -> PatchMask:
        """What each sample hides in this step: the same on any number of ranks."""
        ids, (frames, rows, columns) = batch.sample_ids, self.encoder.grid_size
        return tube_mask(
            len(ids),
            frames,
            rows * columns,
            self.mask_ratio,
            seed=ctx.seed,
            step=ctx.drawn_step,
            sample_ids=ids,
        )
