"""Vision Transformers by size: the published ones, and one for a CPU."""

from collections.abc import Callable
from functools import partial

from sslfast.models.registry import register
from sslfast.models.vision_transformer import VisionTransformer

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
