"""Losses and kernels as functions. Every loss is a few operations on what one op returns per row.

Losses take float16, bfloat16, float32 or float64 embeddings and accumulate in float32 (float64 for
float64). Shapes, dtypes and devices are checked and raise; values never are: non-finite in,
non-finite out.
"""

from sslfast.functional._clip import clip
from sslfast.functional._ema import ema_update_
from sslfast.functional._gather_patches import gather_patches
from sslfast.functional._info_nce import info_nce
from sslfast.functional._linear_cross_entropy import linear_cross_entropy
from sslfast.functional._masked_mse import masked_mse
from sslfast.functional._ntxent import ntxent
from sslfast.functional._patchify_visible import patchify_visible
from sslfast.functional._restore_with_tokens import restore_with_tokens
from sslfast.functional._siglip import siglip
from sslfast.functional._supcon import supcon

__all__ = [
    "clip",
    "ema_update_",
    "gather_patches",
    "info_nce",
    "linear_cross_entropy",
    "masked_mse",
    "ntxent",
    "patchify_visible",
    "restore_with_tokens",
    "siglip",
    "supcon",
]
