"""Which patches, frames or tokens a masked model does not see.

Every sampler draws from Philox with counter (element, sample id, step, stream) and the seed as key,
in integer arithmetic: what a sample gets depends on nothing else, and is the same bits on every
device, backend, batch split and rank (but for ``span_mask(same_number=True)``). Nothing is read
back from the device, with the one exception that ``multiblock_mask(compat=True)`` names.

All take the keywords

    seed: int, the key, modulo 2^64.
    step: int, or an int64 tensor of one element, which may live on the device: the step or epoch,
        modulo 2^32.
    sample_ids: int64 [B], what each sample is called in the data set, modulo 2^32: 3 and 3 + 2^32
        get the same mask. By default 0 ... B - 1.
    stream: int in [0, 65536), the view: samplers and streams never share bits.
    device: of the result; by default that of sample_ids, else of step, else the CPU.

and B may be 0. A seed or step that is no integer raises TypeError. True in a mask means hidden;
indices ascend.
"""

from sslfast.masking._common import PatchMask, as_patch_mask
from sslfast.masking.blocks import block_mask, image_ratio_mask
from sslfast.masking.multiblock import MultiBlockMask, multiblock_mask
from sslfast.masking.patches import random_mask, tube_mask
from sslfast.masking.spans import span_mask
from sslfast.masking.spread import SpreadMask, spread_mask
from sslfast.masking.tokens import TokenMask, token_mask

__all__ = [
    "MultiBlockMask",
    "PatchMask",
    "SpreadMask",
    "TokenMask",
    "as_patch_mask",
    "block_mask",
    "image_ratio_mask",
    "multiblock_mask",
    "random_mask",
    "span_mask",
    "spread_mask",
    "token_mask",
    "tube_mask",
]
