"""What float32 knows of a logit: the bound that kernels are held to, and a safe threshold."""

import math

from torch import Tensor


def logit_error(scale: float, dim: int, bias: float = 0.0) -> float:
    """Bound the error in float32 of scale <x, y> + bias, of vectors of unit length.

    A sum of dim products errs like a random walk, by sqrt(dim) roundings (Higham and Mary 2019,
    SIAM J. Sci. Comput. 41(5), theorem 3.1); the rest is the product with the scale, its logarithm
    to base 2 and the sum over a row. Twice that for the worst of some thousand logits.
    """
    roundings = abs(scale) * (4 + 2 * math.sqrt(dim)) + 4 * abs(bias) + 40
    return 2.0**-24 * roundings


def between(x: Tensor, y: Tensor, near: float) -> float:
    """A threshold near a number, which no rounding moves an inner product of x and y over."""
    products = (x.double() @ y.double().T).flatten()
    closest = products[(products - near).abs().argsort()[:40]].sort().values
    widest = closest.diff().argmax() if len(closest) > 1 else 0
    return closest[widest : widest + 2].mean().item()
