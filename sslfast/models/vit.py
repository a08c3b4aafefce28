"""Vision Transformers with the state_dict names and numerics of timm's VisionTransformer.

Dosovitskiy et al. 2021, arXiv:2010.11929. The encoder can run on some patches of an image only
(masked autoencoders), and on tubelets of a video.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sslfast._arguments import (
    Depth,
    PositiveFloat,
    Probability,
    Range,
    Rate,
    Width,
    checked,
)
from sslfast.functional import patchify_visible
from sslfast.models.positions import Grid, resize_positions, sincos_positions
from sslfast.models.registry import register
from sslfast.models.transformer import EPS, Block, init_linear

Size = Width | tuple[Width, Width]


class PatchEmbed(nn.Module):
    """A linear embedding of every patch: a convolution whose stride is its kernel."""

    def __init__(self, in_chans: int, embed_dim: int, patch: Grid) -> None:
        super().__init__()
        kind = nn.Conv3d if len(patch) == 3 else nn.Conv2d
        self.proj = kind(in_chans, embed_dim, patch, stride=patch)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [B, C, T, H, W] -> [B, L, D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A Vision Transformer; the keywords are timm's, and mean what they mean there.

    Args:
        img_size: height and width of the images in pixels, or one number for both.
        patch_size: height and width of a patch.
        in_chans: channels.
        num_classes: 0 makes an encoder (``head`` is the identity); otherwise ``head`` is linear.
        global_pool: features are the class "token", or the mean of the patches' tokens ("avg").
        embed_dim: D.
        depth: blocks.
        num_heads: heads of a block.
        mlp_ratio: hidden width of a block's MLP over D.
        qkv_bias: biases of queries, keys and values.
        qk_norm: layer norms of queries and keys.
        proj_bias: biases of the other linear layers of a block.
        init_values: layer scale, from this value; None: none.
        class_token: prepend a class token.
        pos_embed: "learn", "sincos" (a fixed table, of MAE or VideoMAE; not in timm, whose learned
            positions have the same name and shape), or "none".
        no_embed_class: class and register tokens have no positions.
        reg_tokens: register tokens (Darcet et al. 2024, arXiv:2309.16588).
        final_norm: a layer norm at the end ...
        fc_norm: ... after the pooling instead of before; None: with global_pool "avg".
        dynamic_img_size: take images of any whole number of patches; positions are interpolated.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the positions.
        proj_drop_rate: dropout of a block's linear layers.
        attn_drop_rate: dropout of the attention.
        drop_path_rate: stochastic depth of the last block, in [0, 1), falling linearly to 0 in the
            first.
        num_frames: None for images, or T of videos [B, C, T, H, W].
        tubelet_size: frames of a patch of a video.
        grad_checkpointing: keep only the blocks' inputs and compute them again in the backward
            pass, for memory.

    Attributes:
        num_features: D.
        grid_size: patches along each axis: (rows, columns), or (frames, rows, columns).
        patch_size: pixels of a patch along each axis.
        num_prefix_tokens: class and register tokens, which come before the patches.
        modality: "image", or "video" with num_frames.

    Raises:
        ValueError: an image that is no whole number of patches, token pooling without class token,
            a width that the heads do not divide.
        BadArgument: a value of the wrong kind or out of its range; it is a ValueError.
    """

    @checked
    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: Width = 3,
        num_classes: Annotated[int, Range(0, 2**24)] = 0,
        global_pool: Literal["token", "avg"] = "token",
        embed_dim: Width = 768,
        depth: Depth = 12,
        num_heads: Width = 12,
        mlp_ratio: Annotated[float, Range(0, 1000, "(]")] = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        init_values: PositiveFloat | None = None,
        class_token: bool = True,
        pos_embed: Literal["learn", "sincos", "none"] = "learn",
        no_embed_class: bool = False,
        reg_tokens: Annotated[int, Range(0, 2**20)] = 0,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        dynamic_img_size: bool = False,
        drop_rate: Probability = 0.0,
        pos_drop_rate: Probability = 0.0,
        proj_drop_rate: Probability = 0.0,
        attn_drop_rate: Probability = 0.0,
        drop_path_rate: Rate = 0.0,
        num_frames: Width | None = None,
        tubelet_size: Width = 2,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if global_pool == "token" and not class_token:
            raise ValueError('without a class token, use global_pool="avg"')
        frames = () if num_frames is None else (num_frames,)
        self.patch_size: Grid = (*((tubelet_size,) if frames else ()), *_pair(patch_size))
        self.img_size: Grid = (*frames, *_pair(img_size))
        self.grid_size: Grid = _grid(self.img_size, self.patch_size)
        self.modality = "video" if frames else "image"
        self.num_features: int = embed_dim
        self.num_prefix_tokens: int = int(class_token) + reg_tokens
        self.global_pool = global_pool
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = grad_checkpointing

        self.patch_embed = PatchEmbed(in_chans, embed_dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.embedded_prefix = 0 if no_embed_class else self.num_prefix_tokens
        self.pos_embed = self._positions(pos_embed)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = [drop_path_rate * n / max(depth - 1, 1) for n in range(depth)]
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim, num_heads, mlp_ratio, qkv_bias, qk_norm, proj_bias, init_values,
                    proj_drop_rate, attn_drop_rate, rate,
                )
                for rate in rates
            )
        )  # fmt: skip
        norm_last = global_pool == "avg" if fc_norm is None else fc_norm
        norms = final_norm and not norm_last, final_norm and norm_last
        self.norm, self.fc_norm = (
            nn.LayerNorm(embed_dim, eps=EPS) if wanted else nn.Identity() for wanted in norms
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        init_linear(self)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def _positions(self, kind: str) -> nn.Parameter | None:
        if kind == "none":
            return None
        table = torch.zeros(1, self.embedded_prefix + math.prod(self.grid_size), self.num_features)
        if kind == "learn":
            return nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        table[:, self.embedded_prefix :] = sincos_positions(self.num_features, self.grid_size)
        return nn.Parameter(table, requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay though they are matrices."""
        return {"pos_embed", "cls_token", "reg_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing of the blocks."""
        self.grad_checkpointing = enable

    def positions(self, grid: Grid) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the prefix tokens [1, P, D] and of the patches [L, D] of a grid, if any."""
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
        proj = self.patch_embed.proj
        tokens = patchify_visible(x, ids_keep, proj.weight, proj.bias, table)
        # Under autocast, too, residuals add up in the parameters' dtype.
        return tokens.to(proj.weight.dtype)

    def transform(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens of patches [B, K, D] with their positions -> encoded tokens [B, P + K, D].

        Args:
            tokens: from ``embed``.
            grid: of the whole image; None: the model's own.
        """
        own, _ = self.positions(grid or self.grid_size)
        prefix: list[Tensor] = [t for t in (self.cls_token, self.reg_token) if t is not None]
        if prefix:
            first = torch.cat(prefix, 1)
            first = first if own is None else first + own
            tokens = torch.cat((first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens), 1)
        tokens = self.pos_drop(tokens)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.norm(tokens)

    def forward_features(self, x: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Encode all patches, or those that are visible.

        Args:
            x: images [B, C, H, W] or videos [B, C, T, H, W].
            ids_keep: int64 [B, K], the visible patches; None: all L.

        Returns:
            [B, P + K, D] (or L): class and register tokens, then patches in the order of ids_keep.
        """
        return self.transform(self.embed(x, ids_keep), self.grid_of(x))

    def pool(self, tokens: Tensor) -> Tensor:
        """Encoded tokens [B, P + K, D] -> features [B, D]."""
        if self.global_pool == "token":
            return self.fc_norm(tokens[:, 0])
        return self.fc_norm(tokens[:, self.num_prefix_tokens :].mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """Images or videos -> features [B, D], or logits [B, num_classes]."""
        return self.head(self.head_drop(self.pool(self.forward_features(x))))


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _grid(size: Grid, patch: Grid) -> Grid:
    if any(p < 1 or s < p or s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(
            f"images of size {list(size)} are no whole number of patches of {list(patch)}"
        )
    return tuple(s // p for s, p in zip(size, patch, strict=True))


vit = VisionTransformer
register(VisionTransformer, "vit")


def _size(name: str, **defaults: object) -> Callable[..., VisionTransformer]:
    """A size by name: all keywords of VisionTransformer, with other defaults."""
    return register(partial(VisionTransformer, **defaults), name)  # type: ignore[arg-type]


# Touvron et al. 2021, arXiv:2012.12877, table 1 (tiny, small); Dosovitskiy et al. 2021,
# arXiv:2010.11929, table 1 (base, large, huge: in patches of 14 in the paper's ViT-H/14).
vit_tiny = _size("vit_tiny", embed_dim=192, depth=12, num_heads=3)
vit_small = _size("vit_small", embed_dim=384, depth=12, num_heads=6)
vit_base = _size("vit_base", embed_dim=768, depth=12, num_heads=12)
vit_large = _size("vit_large", embed_dim=1024, depth=24, num_heads=16)
vit_huge = _size("vit_huge", patch_size=14, embed_dim=1280, depth=32, num_heads=16)
# For images of 32 x 32 and minutes on a CPU: 64 patches, fixed positions, the mean of the tokens.
vit_micro = _size(
    "vit_micro",
    img_size=32,
    patch_size=4,
    embed_dim=128,
    depth=6,
    num_heads=4,
    class_token=False,
    global_pool="avg",
    fc_norm=False,
    pos_embed="sincos",
)
