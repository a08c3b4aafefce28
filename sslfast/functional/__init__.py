"""Losses and kernels as functions. Every loss is a few operations on what one op returns per row.

All take float16, bfloat16, float32 or float64 embeddings and accumulate in float32 (float64 for
float64). Shapes, dtypes and devices are checked and raise; values never are: non-finite in,
non-finite out.
"""

from ._clip import clip
from ._info_nce import info_nce
from ._linear_cross_entropy import linear_cross_entropy
from ._ntxent import ntxent
from ._siglip import siglip
from ._supcon import supcon

__all__ = ["clip", "info_nce", "linear_cross_entropy", "ntxent", "siglip", "supcon"]
