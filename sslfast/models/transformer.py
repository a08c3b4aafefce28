"""The transformer block of Vision Transformers, with the state_dict names of timm's.

Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3: norms before, residuals around.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.models.layers import EPS, DropPath, Layer, LayerScale, Mlp, named
from sslfast.models.packing import Packing, pack
from sslfast.models.rope import Rotation, rotate

NORM: Layer = partial(nn.LayerNorm, eps=EPS)


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``.

    Args:
        dim: width, a multiple of num_heads.
        num_heads: heads.
        qkv_bias: biases of queries, keys and values.
        qk_norm: norms of queries and keys.
        scale_norm: a norm before the output's linear layer.
        proj_bias: bias of the output.
        attn_drop: dropout of the attention.
        proj_drop: dropout of the output.
        norm_layer: makes a norm of a width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Layer = NORM,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split over {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        head = dim // num_heads
        self.q_norm = norm_layer(head) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(head) if qk_norm else nn.Identity()
        self.attn_drop = attn_drop
        self.norm = norm_layer(dim) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D], or packed tokens [S, D] -> [S, D]."""
        qkv = self.qkv(x)
        if packing is None:
            x = self.attend(qkv)
        else:
            sizes = zip(packing.unpack(qkv), packing.rotations, strict=True)
            x = pack([self.attend(part, rotation) for part, rotation in sizes])
        return self.proj_drop(self.proj(self.norm(x)))

    def attend(self, qkv: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Queries, keys and values [B, N, 3 D] -> what the heads make of them [B, N, D]."""
        # Taken apart before they are turned: the gradients are put together in one pass so.
        parts = qkv.unflatten(2, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # [B, heads, N, D / heads]
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return x.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        dim: width.
        num_heads: heads.
        mlp_ratio: the MLP's hidden width over ``dim``.
        qkv_bias: see Attention, as for qk_norm, proj_bias, proj_drop and attn_drop.
        qk_norm: see Attention.
        scale_attn_norm: ``scale_norm`` of Attention.
        scale_mlp_norm: a norm before the MLP's last linear layer.
        proj_bias: see Attention; also of the MLP.
        proj_drop: see Attention; also of the MLP.
        attn_drop: see Attention.
        init_values: of the layer scale; None or 0: no layer scale.
        drop_path: see DropPath.
        act_layer: makes the MLP's activation; None: the MLP's own.
        norm_layer: makes a norm of a width.
        mlp_layer: makes the MLP; see Mlp for its keywords.
        attn_layer: makes the attention; see Attention for its keywords.
        depth: number of the block, for block classes that ask for it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Layer | None = None,
        norm_layer: Layer = NORM,
        mlp_layer: Layer = Mlp,
        attn_layer: str | Layer = Attention,
        depth: int = 0,
    ) -> None:
        del depth
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(dim, init_values) if init_values else nn.Identity()

        self.norm1 = norm_layer(dim)
        self.attn = named("attn_layer", attn_layer, {"": Attention, "attn": Attention})(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_attn_norm,
            proj_bias=proj_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
        )
        self.ls1, self.drop_path1 = scale(), DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp_layer(
            in_features=dim,
            hidden_features=int(dim * mlp_ratio),
            act_layer=act_layer,
            norm_layer=norm_layer if scale_mlp_norm else None,
            bias=proj_bias,
            drop=proj_drop,
        )
        self.ls2, self.drop_path2 = scale(), DropPath(drop_path)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D], or packed tokens [S, D] -> [S, D]."""
        y = self.norm1(x)
        y = self.attn(y) if packing is None else self.attn(y, packing)
        x = x + self.drop_path1(self.ls1(y), packing)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))), packing)
