"""BEiT: the encoder sees mask tokens for hidden patches, and predicts their visual tokens."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sslfast._arguments import Probability
from sslfast.data.batch import Batch
from sslfast.functional import gather_patches, linear_cross_entropy
from sslfast.masking import PatchMask, as_patch_mask, block_mask
from sslfast.methods import masked
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.models import VisionTransformer
from sslfast.tokenizers import PatchTokenizer, as_tokenizer


@register("beit")
class BEiT(Method):
    """BEiT (arXiv:2106.08254): cross-entropy over the visual tokens of hidden patches.

    The tokens are those of the same view; the paper's tokenizer sees it at 112 pixels.

    Args:
        encoder: a VisionTransformer; it runs on all patches.
        tokenizer: a file of ``sslfast tokenizer fit``, or the tokenizer itself.
        mask_ratio: share of hidden patches.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tokenizer, or one for other patches; a bad ratio.
    """

    recipe = "beit"
    files = ("tokenizer",)
    encoders = VisionTransformer
    reference = Reference(
        "Bao et al. 2022, arXiv:2106.08254",
        {  # betas 0.9 and 0.98, gradients clipped at 3; relative positions, which are not here
            **{"model": "vit_base", "batch_size": 2048, "epochs": 800, "optimizer": "AdamW"},
            "model_args": {"init_values": 0.1, "drop_path_rate": 0.1, "weight_init": "beit"},
            **{"lr": 1.5e-3, "weight_decay": 0.05, "warmup_epochs": 10, "vocab_size": 8192},
        },
    )
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        tokenizer: str | Path | PatchTokenizer | None = None,
        mask_ratio: Probability = 75 / 196,
    ) -> None:
        super().__init__(encoder)
        self.tokenizer = as_tokenizer(tokenizer)
        self.tokenizer.check_fits(encoder)
        self.grid = rows, columns = masked.image_grid(encoder)
        self.num_masked = masked.hidden_number(mask_ratio, rows * columns)
        self.min_patches = max(16 * rows * columns // 196, 1)  # the paper's, in its share
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.num_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(encoder.num_features, self.tokenizer.spec.vocab_size)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"mask_token"}

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Encoded hidden patches [B, K, D] and their tokens, int64 [B, K]."""
        images, mask = masked.only_view(batch), self.mask(batch, ctx)
        encoded = masked.encode_masked(self.encoder, images, self.mask_token, *mask[:2])
        hidden = as_patch_mask(~mask.mask, self.num_masked).ids_keep
        return gather_patches(encoded, hidden), self.tokenizer(images).gather(1, hidden)

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Cross-entropy of the hidden patches' tokens, in nats (chance: log of the vocabulary)."""
        hidden, tokens = outputs
        return {"loss": linear_cross_entropy(hidden, self.head.weight, tokens, self.head.bias)}

    def mask(self, batch: Batch, ctx: Context) -> PatchMask:
        """What each sample hides in this step: the same on any number of ranks."""
        ids = batch.sample_ids
        return block_mask(
            len(ids), self.grid, self.num_masked, min_patches=self.min_patches,
            seed=ctx.seed, step=ctx.drawn_step, sample_ids=ids,
        )  # fmt: skip

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Original, masked, hidden patches by likeliest tokens, and all patches by true tokens."""
        images, mask = masked.only_view(batch), self.mask(batch, ctx)
        encoded = masked.encode_masked(self.encoder, images, self.mask_token, *mask[:2])
        original = self.tokenizer.patches(images)
        predicted = self.tokenizer.decode(self.head(encoded).argmax(-1), original)
        rows = masked.reconstruction(original, predicted, mask.mask, self.encoder)
        return {**rows, "true tokens": self.tokenizer.restore(images)}
