"""From a Vision Transformer's tokens to one vector of features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.models.layers import Layer, Mlp

Pool = Literal["token", "avg", "avgmax", "max", "map", ""]


def pool_tokens(kind: Pool, tokens: Tensor, patches: Tensor) -> Tensor:
    """Features [B, D] of all tokens [B, N, D], or of those that are ``patches`` [B, L, D].

    "token": the first token; "avg" and "max": mean and maximum of the patches; "avgmax": half the
    sum of both; "": the tokens as they are.
    """
    if kind == "":
        return tokens
    if kind == "token":
        return tokens[:, 0]
    if kind == "avg":
        return patches.mean(1)
    most = patches.amax(1)
    return most if kind == "max" else 0.5 * (most + patches.mean(1))


class LatentPool(nn.Module):
    """Attention of one learned query over the tokens, then an MLP: SigLIP's pooling.

    Zhai et al. 2022, arXiv:2106.04560, section 4.1; timm's ``AttentionPoolLatent``.

    Args:
        dim: D.
        num_heads: heads.
        mlp_ratio: hidden width of the MLP over D.
        norm_layer: makes the norm before the MLP.
        act_layer: makes the activation of the MLP.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, norm_layer: Layer, act_layer: Layer
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        nn.init.trunc_normal_(self.latent, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        q = self.q(self.latent.expand(len(x), -1, -1)).unflatten(2, (self.num_heads, -1))
        kv = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(q.transpose(1, 2), *kv.unbind(0))
        pooled = self.proj(pooled.transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
