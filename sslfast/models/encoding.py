"""Tokens through the blocks of a Vision Transformer: of one size of images, or of several."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sslfast.models.crops import per_view
from sslfast.models.embedding import PatchTokens
from sslfast.models.packing import Packing, pack
from sslfast.models.positions import Grid
from sslfast.models.rope import RotaryPositions, Rotation
from sslfast.models.transformer import Attention, Block


class Encoding(PatchTokens):
    """Tokens, and the blocks that work on them: a base of VisionTransformer, which makes them."""

    blocks: nn.Sequential
    pos_drop: nn.Module
    norm_pre: nn.Module
    norm: nn.Module
    rope_embed: RotaryPositions | None
    grad_checkpointing: bool

    def run_blocks(
        self,
        tokens: Tensor,
        grid: Grid | None = None,
        taken: Collection[int] = (),
        depth: int | None = None,
        ids_keep: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the blocks, without the final norm.

        Args:
            tokens: of patches [B, K, D], from ``embed``.
            grid: of the whole image; None: the model's own.
            taken: numbers of blocks.
            depth: run so many; None: all.
            ids_keep: int64 [B, K], which patches they are, for rotary positions; None: all.

        Returns:
            The last block's tokens [B, P + K, D], and those of the blocks ``taken``.

        Raises:
            ValueError: rotary positions, and some patches of which nobody says which.
        """
        begun = self._begin(tokens, grid)
        if self.rope_embed is None:
            return self._run(begun, None, taken, depth)
        packing = Packing.of([begun], [self._rotation(tokens, grid, ids_keep)])
        last, found = self._run(pack([begun]), packing, taken, depth)
        return packing.unpack(last)[0], [packing.unpack(t)[0] for t in found]

    def _rotation(
        self, tokens: Tensor, grid: Grid | None, ids_keep: Tensor | None
    ) -> Rotation | None:
        if self.rope_embed is None:
            return None
        grid = grid or self.grid_size
        if ids_keep is None and tokens.shape[1] != math.prod(grid):
            raise ValueError(
                f"rotary positions need to know which {tokens.shape[1]} of {math.prod(grid)} "
                "patches these are: give ids_keep"
            )
        return self.rope_embed(grid, self.num_prefix_tokens, ids_keep)

    def _begin(self, tokens: Tensor, grid: Grid | None) -> Tensor:
        return self.norm_pre(self.pos_drop(self.with_prefix(tokens, grid)))

    def _run(
        self,
        tokens: Tensor,
        packing: Packing | None,
        taken: Collection[int] = (),
        depth: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        found = []
        # Blocks of other classes know nothing of a packing.
        inputs = () if packing is None else (packing,)
        for number, block in enumerate(list(self.blocks)[:depth]):
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *inputs, use_reentrant=False)
            else:
                tokens = block(tokens, *inputs)
            if number in taken:
                found.append(tokens)
        return tokens, found

    def transform(
        self, tokens: Tensor, grid: Grid | None = None, ids_keep: Tensor | None = None
    ) -> Tensor:
        """Tokens of patches [B, K, D] with their positions -> encoded tokens [B, P + K, D].

        Args:
            tokens: from ``embed``.
            grid: of the whole image; None: the model's own.
            ids_keep: int64 [B, K], which patches they are, for rotary positions; None: all.

        Raises:
            ValueError: rotary positions, and some patches of which nobody says which.
        """
        return self.norm(self.run_blocks(tokens, grid, ids_keep=ids_keep)[0])

    def transform_crops(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[Grid],
        ids_keep: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """``transform`` for images of several sizes, in one pass without padding.

        The tokens of all sizes are one matrix for linear layers, norms and MLPs; attention works
        size by size. With blocks or attention of other classes than this package's: one pass for
        each size.

        Args:
            tokens: of patches [B, K, D] for each size, from ``embed``; B may differ too.
            grids: of the whole images of each size.
            ids_keep: see ``transform``, for each size.

        Returns:
            Encoded tokens [B, P + K, D] for each size.
        """
        sizes = [*zip(tokens, grids, ids_keep or [None] * len(tokens), strict=True)]
        if len(sizes) < 2 or not self.packs():
            return [self.transform(*size) for size in sizes]
        begun = [self._begin(t, grid) for t, grid, _ in sizes]
        packing = Packing.of(begun, [self._rotation(*size) for size in sizes])
        return packing.unpack(self.norm(self._run(pack(begun), packing)[0]))

    def packs(self) -> bool:
        """Whether all blocks take packed tokens and rotary positions: those of this package do."""
        return all(type(b) is Block and type(b.attn) is Attention for b in self.blocks)

    def forward_features(self, x: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode all patches, or those that are visible.

        Args:
            x: images [B, C, H, W] or videos [B, C, T, H, W].
            ids_keep: int64 [B, K], the visible patches; None: all L.

        Returns:
            [B, P + K, D] (or L): class and register tokens, then patches in the order of ids_keep.
        """
        return self.transform(self.embed(x, ids_keep), self.grid_of(x), ids_keep)

    def forward_features_crops(self, views: Sequence[Tensor]) -> list[Tensor]:
        """``forward_features`` of views of several sizes, in one pass; see ``transform_crops``.

        Args:
            views: images [B, C, H, W] each; in whatever order sizes come.

        Returns:
            [B, P + L, D] for each view: class and register tokens, then patches.
        """
        return per_view(views, self._encode_sizes)

    def _encode_sizes(self, images: list[Tensor]) -> list[Tensor]:
        return self.transform_crops([self.embed(x) for x in images], [*map(self.grid_of, images)])
