"""What a Vision Transformer makes of an image before its blocks: tokens with positions."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sslfast._arguments import Width
from sslfast.masking.patch_functions import patchify_visible
from sslfast.models.layers import Layer
from sslfast.models.positions import Grid, resize_positions, sincos_positions

Size = Width | tuple[Width, Width]
PosEmbed = Literal["learn", "sincos", "rope", "none", ""]


class PatchEmbed(nn.Module):
    """A linear embedding of every patch: a convolution whose stride is its kernel.

    Args:
        in_chans: channels.
        embed_dim: D.
        patch: pixels of a patch along each axis.
        bias: of the convolution.
        norm_layer: makes a norm of the embedded patches; None: none.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        patch: Grid,
        bias: bool = True,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        kind = nn.Conv3d if len(patch) == 3 else nn.Conv2d
        self.proj = kind(in_chans, embed_dim, patch, stride=patch, bias=bias)  # type: ignore[arg-type]
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [B, C, T, H, W] -> [B, L, D]."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PatchTokens(nn.Module):
    """Patches, positions, class and register tokens: the base of VisionTransformer.

    Args:
        img_size: see VisionTransformer, as for all that follow.
        patch_size: see there.
        in_chans: see there.
        embed_dim: see there.
        class_token: see there.
        pos_embed: see there.
        no_embed_class: see there.
        reg_tokens: see there.
        dynamic_img_size: see there.
        num_frames: see there.
        tubelet_size: see there.
        bias: of the patch embedding.
        embed_norm: makes a norm of the embedded patches; None: none.

    Raises:
        ValueError: an image that is no whole number of patches.
    """

    def __init__(
        self,
        img_size: Size,
        patch_size: Size,
        in_chans: int,
        embed_dim: int,
        *,
        class_token: bool,
        pos_embed: PosEmbed,
        no_embed_class: bool,
        reg_tokens: int,
        dynamic_img_size: bool,
        num_frames: int | None,
        tubelet_size: int,
        bias: bool = True,
        embed_norm: Layer | None = None,
    ) -> None:
        super().__init__()
        frames = () if num_frames is None else (num_frames,)
        self.patch_size: Grid = (*((tubelet_size,) if frames else ()), *_pair(patch_size))
        self.img_size: Grid = (*frames, *_pair(img_size))
        self.grid_size: Grid = _grid(self.img_size, self.patch_size)
        self.modality = "video" if frames else "image"
        self.num_features: int = embed_dim
        self.num_prefix_tokens: int = int(class_token) + reg_tokens
        self.dynamic_img_size = dynamic_img_size

        self.patch_embed = PatchEmbed(in_chans, embed_dim, self.patch_size, bias, embed_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.embedded_prefix = 0 if no_embed_class else self.num_prefix_tokens
        self.pos_embed = self._positions(pos_embed)

    def _positions(self, kind: str) -> nn.Parameter | None:
        if kind in ("rope", "none", ""):  # attention turns by rotary ones
            return None
        table = torch.zeros(1, self.embedded_prefix + math.prod(self.grid_size), self.num_features)
        if kind == "learn":
            return nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        table[:, self.embedded_prefix :] = sincos_positions(self.num_features, self.grid_size)
        return nn.Parameter(table, requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"pos_embed", "cls_token", "reg_token"}

    def positions(self, grid: Grid) -> tuple[Tensor | None, Tensor | None]:
        """Positions that are added to the prefix tokens [1, P, D] and patches [L, D] of a grid."""
        if self.pos_embed is None:
            return None, None
        table = resize_positions(self.pos_embed, self.grid_size, grid, self.embedded_prefix)
        prefix = table[:, : self.embedded_prefix] if self.embedded_prefix else None
        return prefix, table[0, self.embedded_prefix :]

    def grid_of(self, x: Tensor) -> Grid:
        """Patches along each axis of images [B, C, H, W] or videos [B, C, T, H, W].

        Raises:
            ValueError: images of another size than the model's without ``dynamic_img_size``, or
                that are no whole number of patches.
        """
        size = tuple(x.shape[2:])
        if len(size) == len(self.img_size) == 3 and size[0] != self.img_size[0]:
            raise ValueError(
                f"this Vision Transformer is for videos of {self.img_size[0]} frames, got {size[0]}"
                f": take as many, or build it with num_frames={size[0]}"
            )
        fits = len(size) == len(self.img_size) if self.dynamic_img_size else size == self.img_size
        if not fits:
            raise ValueError(
                f"this Vision Transformer is for images of {list(self.img_size)}, got "
                f"{list(size)}: resize them, or build it with img_size={size[-1]} or "
                "dynamic_img_size=True"
            )
        return _grid(size, self.patch_size)

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError where views of a shape, (C, H, W) or (C, T, H, W), are not for it.

        The trainer asks before the first step.
        """
        self.grid_of(torch.empty(0, *shape))

    def embed(self, x: Tensor, ids_keep: Tensor | None = None, positions: bool = True) -> Tensor:
        """Patches -> tokens.

        Args:
            x: images [B, C, H, W] or videos [B, C, T, H, W].
            ids_keep: int64 [B, K], the patches to embed, such as ``PatchMask.ids_keep``; the others
                are not even read. None: all L.
            positions: add the patches' positions.

        Returns:
            [B, K, D] (or L).
        """
        _, table = self.positions(self.grid_of(x)) if positions else (None, None)
        if ids_keep is None:
            tokens = self.patch_embed(x)
            return tokens if table is None else tokens + table
        proj, norm = self.patch_embed.proj, self.patch_embed.norm
        plain = isinstance(norm, nn.Identity)
        # Under autocast, too, residuals add up in the parameters' dtype.
        tokens = patchify_visible(x, ids_keep, proj.weight, proj.bias, table if plain else None).to(
            proj.weight.dtype
        )
        if plain:
            return tokens
        return norm(tokens) if table is None else norm(tokens) + table[ids_keep]

    def with_prefix(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens of patches [B, K, D] behind class and register tokens: [B, P + K, D].

        Args:
            tokens: from ``embed``.
            grid: of the whole image; None: the model's own.
        """
        prefix: list[Tensor] = [t for t in (self.cls_token, self.reg_token) if t is not None]
        if not prefix:
            return tokens
        own, _ = self.positions(grid or self.grid_size)
        first = torch.cat(prefix, 1)
        first = first if own is None else first + own
        return torch.cat((first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens), 1)


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _grid(size: Grid, patch: Grid) -> Grid:
    if any(p < 1 or s < p or s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(
            f"images of size {list(size)} are no whole number of patches of {list(patch)}"
        )
    return tuple(s // p for s, p in zip(size, patch, strict=True))
