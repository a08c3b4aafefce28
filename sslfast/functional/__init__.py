"""Losses and kernels as functions. Every loss is a few operations on what one op returns per row.

Losses take float16, bfloat16, float32 or float64 embeddings and accumulate in float32 (float64 for
float64). Shapes, dtypes and devices are checked and raise; values never are: non-finite in,
non-finite out.
"""

from ._clip import clip
from ._ema import ema_update_
from ._info_nce import info_nce
from ._ntxent import ntxent
from ._supcon import supcon

__all__ = ["clip", "ema_update_", "info_nce", "ntxent", "supcon"]
