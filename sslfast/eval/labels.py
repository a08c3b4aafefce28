"""Which labels a protocol sees."""

import numpy as np
import torch
from torch import Tensor

from sslfast._arguments import Part, PositiveInt, Seed, checked


@checked
def draw_labels(
    labels: Tensor,
    sample_ids: Tensor,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
) -> Tensor:
    """Draw labelled samples of every class.

    Each class has one random order, fixed by ``seed`` and the sample ids, and a draw takes the
    first of it: a larger draw holds every smaller one, and the order of the rows has no influence.

    Args:
        labels: classes of all samples, int64 [N].
        sample_ids: their ids, int64 [N].
        labels_per_class: exactly this many of each class.
        label_fraction: this part, in (0, 1], of each class, rounded, at least one.
        seed: fixes the order.

    Returns:
        Row numbers, int64 [n], class by class in the order drawn; all rows where neither limit is
        given.

    Raises:
        ValueError: both limits, or one out of range, or a class with too few labels.
    """
    if labels_per_class is not None and label_fraction is not None:
        raise ValueError("give labels_per_class or label_fraction, not both")
    known, ids = labels.numpy(), sample_ids.numpy()
    drawn = []
    for position, label in enumerate(np.unique(known)):
        rows = np.flatnonzero(known == label)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        # Raw words of a bit generator: NumPy keeps these the same in every version.
        words = np.random.PCG64([seed, position]).random_raw(len(rows))
        rows = rows[np.argsort(words, kind="stable")]
        count = len(rows)
        if labels_per_class is not None:
            count = labels_per_class
        elif label_fraction is not None:
            count = max(1, round(label_fraction * len(rows)))
        if count > len(rows):
            raise ValueError(
                f"class {label} has {len(rows)} train labels, fewer than labels_per_class="
                f"{count}: ask for at most {len(rows)}, or use label_fraction"
            )
        drawn.append(rows[:count])
    return torch.from_numpy(np.concatenate(drawn))
