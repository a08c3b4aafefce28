"""Which patches of each sample stay: selection by Philox keys, and the indices that follow from it.

Every backend has three functions; all indices are int64, and B, L or K may be 0.

``random(sample_ids, step, seed, stream, length, keep) -> (ids_keep, ids_restore, mask)``
    The random mask. Element e of a sample has key w_e, the word that ``kernels.philox`` gives for
    (sample id, step, seed, stream) and element e. The ``keep`` elements with the smallest
    (w_e, e) stay: the smallest keys, ties by index. sample_ids int64 [B], step int64 [] on the same
    device, the rest host integers.

``smallest(keys, counts) -> chosen``
    keys int64 [B, L] in [0, 2^KEY_BITS), counts int64 [B]: bool [B, L], true for the counts_b
    smallest (key, e) of row b; a count below 0 or above L counts as 0 or L.

``compact(mask, keep) -> (ids_keep, ids_restore)``
    mask bool [B, L], true where hidden. A row's elements are put in the order: visible ones
    ascending, then hidden ones ascending. ids_restore [B, L] is the place of every element in it,
    ids_keep [B, K] the elements at its first ``keep`` places: all visible ones where a row has
    exactly that many. In ``random`` both follow in this way from its mask.

So ``restored = cat(rows[ids_keep], tokens)[ids_restore]`` puts every row back where it was.
"""

from dataclasses import dataclass

KEY_BITS = 40  # 32 random bits, and room above them for a class of elements


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    batch: int
    length: int
