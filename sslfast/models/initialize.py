"""How weights begin: timm's default, and what masked methods published instead."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sslfast.models.vision_transformer import VisionTransformer


def init_linear(module: nn.Module) -> None:
    """Weights of linear layers from a normal distribution of 0.02 cut at 2, biases 0 (timm's)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            _zero_bias(layer)


def init_xavier(module: nn.Module) -> None:
    """Weights of linear layers uniform as in Glorot and Bengio 2010, biases 0 (MAE, VideoMAE)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            _zero_bias(layer)


def _zero_bias(layer: nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def rescale_by_depth(blocks: Iterable[nn.Module]) -> None:
    """Divide the last weights of both branches of block n = 1, 2 ... by sqrt(2 n).

    Bao et al. 2022, arXiv:2106.08254 (BEiT); so do the published I-JEPA and timm's ``fix_init``.
    """
    for number, block in enumerate(blocks, start=1):
        for name in ("attn.proj.weight", "mlp.fc2.weight"):
            weight: Tensor = block.get_parameter(name)
            weight.div_(math.sqrt(2 * number))


def init_vit(model: "VisionTransformer", weight_init: str = "", fix_init: bool = False) -> None:
    """Draw the first weights of a Vision Transformer; see its keywords of these names."""
    (init_xavier if weight_init == "mae" else init_linear)(model)
    projection = model.patch_embed.proj
    if weight_init == "mae" and isinstance(projection, nn.Conv2d):  # VideoMAE leaves torch's
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02 if weight_init else 1e-6)
    if fix_init or weight_init == "beit":
        rescale_by_depth(model.blocks)
