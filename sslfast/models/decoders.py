"""What sits behind an encoder of visible patches: MAE's decoder and I-JEPA's predictor."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslfast._arguments import Depth, NonNegativeInt, Width, checked
from sslfast.masking.patch_functions import restore_with_tokens
from sslfast.models.initialize import init_linear, init_xavier, rescale_by_depth
from sslfast.models.positions import Grid, sincos_positions
from sslfast.models.transformer import EPS, Block

HEAD = 32  # width of a head, as in MAE's decoder and in I-JEPA's predictor beside ViT-B


class _Narrow(nn.Module):
    """A transformer of another width than the encoder's, with fixed positions and a mask token."""

    positions: Tensor
    usual_dim: ClassVar[int]  # the paper's width, for wider encoders

    def __init__(
        self,
        in_dim: int,
        dim: int | None,
        out_dim: int,
        depth: int,
        grid: Grid,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        if dim is None:
            dim = self.usual_dim if in_dim > self.usual_dim else in_dim // 2
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(dim, grid), persistent=False)
        heads = max(dim // HEAD, 1) if heads is None else heads
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, out_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"mask_token"}


class Decoder(_Narrow):
    """MAE's decoder (He et al. 2022, arXiv:2111.06377, section 3): pixels from visible patches.

    Its weights begin as published: uniform after Glorot and Bengio, biases 0.

    Args:
        in_dim: width of the encoder.
        dim: width of the decoder, a multiple of 4 and of ``heads``; None: the paper's 512, or half
            of an encoder that is no wider than that.
        out_dim: numbers predicted for a patch.
        depth: blocks.
        grid: patches along each axis of the image.
        prefix: class and register tokens before the patches.
        heads: of each block; None: as many as are 32 wide.
    """

    usual_dim = 512

    @checked
    def __init__(
        self,
        in_dim: Width,
        dim: Width | None,
        out_dim: Width,
        depth: Depth,
        grid: Grid,
        prefix: NonNegativeInt = 0,
        heads: Width | None = None,
    ) -> None:
        super().__init__(in_dim, dim, out_dim, depth, grid, heads)
        self.prefix = prefix
        init_xavier(self)

    def forward(self, tokens: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict every patch.

        Args:
            tokens: the encoder's, [B, prefix + K, in_dim].
            ids_restore: int64 [B, L], see ``sslfast.masking.PatchMask``.

        Returns:
            [B, L, out_dim].
        """
        x = self.embed(tokens)
        first, visible = x[:, : self.prefix], x[:, self.prefix :]
        token, positions = (t.to(x.dtype) for t in (self.mask_token, self.positions))
        whole = restore_with_tokens(visible, token, ids_restore, positions)
        x = self.blocks(torch.cat((first, whole), 1))
        return self.head(self.norm(x[:, self.prefix :]))


class Predictor(_Narrow):
    """I-JEPA's predictor (Assran et al. 2023, arXiv:2301.08243, section 3).

    Its weights begin as published: the deeper a block, the less it adds.

    Args:
        in_dim: width of the encoder, and of what is predicted.
        dim: width of the predictor, a multiple of 4 and of ``heads``; None: the paper's 384, or
            half of an encoder that is no wider than that.
        depth: blocks.
        grid: patches along each axis of the image.
        heads: of each block, as published as many as the encoder has; None: as many as are 32 wide.
    """

    usual_dim = 384

    @checked
    def __init__(
        self,
        in_dim: Width,
        dim: Width | None,
        depth: Depth,
        grid: Grid,
        heads: Width | None = None,
    ) -> None:
        super().__init__(in_dim, dim, in_dim, depth, grid, heads)
        init_linear(self)
        rescale_by_depth(self.blocks)

    def forward(self, context: Tensor, ids_context: Tensor, ids_target: Tensor) -> Tensor:
        """Predict target blocks, each by itself from the whole context.

        Args:
            context: encoded patches [B, K, in_dim].
            ids_context: int64 [B, K], which patches they are.
            ids_target: int64 [B, T, N], the patches of each target.

        Returns:
            [B, T, N, in_dim].
        """
        count = ids_target.shape[1]
        seen = self.embed(context)
        seen = seen + self.positions[ids_context].to(seen.dtype)
        seen = seen.repeat_interleave(count, 0)
        asked = (self.mask_token + self.positions[ids_target.flatten(0, 1)]).to(seen.dtype)
        x = self.blocks(torch.cat((seen, asked), 1))[:, seen.shape[1] :]
        return self.head(self.norm(x)).unflatten(0, (-1, count))
