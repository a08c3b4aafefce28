"""Learning rates over the steps of a training."""

import math


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int, end: float = 0.0) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then half a cosine towards ``end``.

    The cosine is that of SGDR without restarts (Loshchilov and Hutter 2017, arXiv:1608.03983,
    equation 5). The first step of a warm-up takes peak / warmup, and no step takes ``end``.

    Args:
        step: steps done so far, 0 <= step < total.
        peak: the highest learning rate.
        warmup: steps of the linear rise; 0 for none.
        total: steps of the whole run.
        end: what the cosine falls (or rises) to.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))
