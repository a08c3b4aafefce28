"""Losses and kernels as functions. Every loss is a few operations on what one op returns per row.

Losses take float16, bfloat16, float32 or float64 embeddings and accumulate in float32 (float64 for
float64). Shapes, dtypes and devices are checked and raise; values never are: non-finite in,
non-finite out.
"""

from sslfast.ema.update import ema_update_
from sslfast.losses.barlow_twins import barlow_twins
from sslfast.losses.clip import clip
from sslfast.losses.infonce import info_nce
from sslfast.losses.koleo import koleo
from sslfast.losses.linear_cross_entropy import linear_cross_entropy
from sslfast.losses.masked_mse import masked_mse
from sslfast.losses.negative_cosine import negative_cosine_similarity
from sslfast.losses.ntxent import ntxent
from sslfast.losses.prototypes import prototype_cross_entropy
from sslfast.losses.siglip import siglip
from sslfast.losses.sigreg import sigreg
from sslfast.losses.sinkhorn import sinkhorn
from sslfast.losses.supcon import supcon
from sslfast.losses.vicreg import vicreg
from sslfast.masking.patch_functions import gather_patches, patchify_visible, restore_with_tokens

__all__ = [
    "barlow_twins",
    "clip",
    "ema_update_",
    "gather_patches",
    "info_nce",
    "koleo",
    "linear_cross_entropy",
    "masked_mse",
    "negative_cosine_similarity",
    "ntxent",
    "patchify_visible",
    "prototype_cross_entropy",
    "restore_with_tokens",
    "siglip",
    "sigreg",
    "sinkhorn",
    "supcon",
    "vicreg",
]
