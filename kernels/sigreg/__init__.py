"""SIGReg: how far the shadows of features along random directions are from a standard normal.

For rows z_i of one view, a direction a of unit length and p_i = <z_i, a>, the empirical
characteristic function at t is 1/N sum_i exp(i t p_i); of a standard normal it is
phi(t) = exp(-t^2 / 2). With C_k and S_k the sums over rows of cos(t_k p_i) and sin(t_k p_i), the
statistic of Epps and Pulley is

    T = N sum_k w_k ((C_k / N - phi_k)^2 + (S_k / N)^2),   w_k = 2 dt phi_k, half of it at the last,

the trapezoid rule over [-t_max, t_max], of which both halves are equal, with nodes t_k = k dt,
k = 0 .. knots - 1; at t_0 = 0 nothing can differ. The result is the mean of T over views and
directions (Balestriero and LeCun 2025, arXiv:2511.08544, and its published code). With K = knots -
1 nodes, the gradient with respect to a projection is

    dT / dp_i = sum_k 2 w_k t_k ((S_k / N) cos(t_k p_i) - (C_k / N - phi_k) sin(t_k p_i)).

The op multiplies features with some directions at a time (``directions_at_a_time``), so that
projections of the others are never in memory. Backends do the rest, in two functions over
projections p [V, N, m], contiguous, float32 or float64:

``sums(p, form) -> [V, 2, K, m]``
    C and S of every view and direction, in the statistics dtype.

``gradient_(p, coefficients, form)``
    Overwrites p_i by sum_k a_k cos(t_k p_i) + b_k sin(t_k p_i), a and b being coefficients
    [V, 2, K, m] of the dtype of p.

All K cosines and sines of an angle are powers of one complex number, exp(i dt p): one cosine and
sine are computed, and the others by products. Non-finite in, non-finite out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """Where characteristic functions are compared.

    Attributes:
        t_max: the largest t.
        knots: nodes, 0 and t_max among them; 2 at least.
    """

    t_max: float
    knots: int

    @property
    def step(self) -> float:
        """From a node to the next: dt."""
        return self.t_max / (self.knots - 1)

    @property
    def count(self) -> int:
        """Nodes that are not 0: K."""
        return self.knots - 1

    def nodes(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, phi and w [K] of these, with the dtype and device of ``like``."""
        t = torch.arange(1, self.knots, device=like.device, dtype=torch.float64) * self.step
        phi = torch.exp(-t.square() / 2)
        weight = 2 * self.step * phi
        weight[-1] /= 2
        return t.to(like.dtype), phi.to(like.dtype), weight.to(like.dtype)


@dataclass(frozen=True)
class Problem:
    """What a backend is asked to do."""

    device: str
    dtype: torch.dtype


# Projections in memory at a time: on a CPU what its caches hold, on a GPU 256 MB of float32.
_AT_A_TIME = {"cpu": 1 << 20}
_ON_GPUS = 1 << 26
_FEWEST = 64  # directions that a product is worth


def directions_at_a_time(rows: int, device: str) -> int:
    """How many directions are multiplied with so many rows at a time."""
    return max(_AT_A_TIME.get(device, _ON_GPUS) // max(rows, 1) // _FEWEST * _FEWEST, _FEWEST)
