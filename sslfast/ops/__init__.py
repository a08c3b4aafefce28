"""torch.library ops: schema, fake implementation and autograd; backends come from the registry."""

from sslfast.ops.class_sums import class_sums
from sslfast.ops.ema import ema_update_
from sslfast.ops.gather_patches import gather_patches, scatter_patches
from sslfast.ops.info_nce import weighted_info_nce
from sslfast.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from sslfast.ops.masked_mse import masked_mse
from sslfast.ops.patch_mask import compact_mask, random_patch_mask, smallest_keys
from sslfast.ops.patchify_visible import cut_patches, patchify_visible
from sslfast.ops.philox import random_bits
from sslfast.ops.restore_with_tokens import restore_with_tokens
from sslfast.ops.sigmoid_contrast import sigmoid_contrast, weighted_sigmoid_contrast
from sslfast.ops.similarity_softmax import similarity_softmax

__all__ = [
    "class_sums",
    "compact_mask",
    "cut_patches",
    "ema_update_",
    "gather_patches",
    "linear_cross_entropy",
    "masked_mse",
    "patchify_visible",
    "random_bits",
    "random_patch_mask",
    "restore_with_tokens",
    "scatter_patches",
    "sigmoid_contrast",
    "similarity_softmax",
    "smallest_keys",
    "weighted_info_nce",
    "weighted_linear_cross_entropy",
    "weighted_sigmoid_contrast",
]
