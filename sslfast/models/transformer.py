"""The transformer block of Vision Transformers, with the state_dict names of timm's.

Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3: norms before, residuals around.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of every layer norm, as in timm


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``.

    Args:
        dim: width, a multiple of num_heads.
        num_heads: heads.
        qkv_bias: biases of queries, keys and values.
        qk_norm: layer norms of queries and keys.
        proj_bias: bias of the output.
        attn_drop: dropout of the attention.
        proj_drop: dropout of the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split over {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        head = dim // num_heads
        self.q_norm = nn.LayerNorm(head, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=EPS) if qk_norm else nn.Identity()
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU, linear, with dropout after both."""

    def __init__(self, dim: int, hidden: int, bias: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, arXiv:2103.17239, section 2)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class DropPath(nn.Module):
    """Leave a residual branch out of some samples, and scale it in the others.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382).

    Args:
        rate: probability that a sample goes without the branch, while training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.rate == 0:
            return x
        shape = (len(x), *(1,) * (x.dim() - 1))
        keep = torch.rand(shape, device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        dim: width.
        num_heads: heads.
        mlp_ratio: the MLP's hidden width over ``dim``.
        qkv_bias: see Attention, as for qk_norm, proj_bias, proj_drop and attn_drop.
        qk_norm: see Attention.
        proj_bias: see Attention; also of the MLP.
        init_values: of the layer scale; None: no layer scale.
        proj_drop: see Attention; also of the MLP.
        attn_drop: see Attention.
        drop_path: see DropPath.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_norm, proj_bias, attn_drop, proj_drop)
        self.ls1, self.drop_path1 = scale(), DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_bias, proj_drop)
        self.ls2, self.drop_path2 = scale(), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def init_linear(module: nn.Module) -> None:
    """Weights of linear layers from a normal distribution of 0.02 cut at 2, biases 0 (timm's)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
