"""Torch only, any device: a segmented prefix sum of rows sorted by class. No atomics, no index_add.

The prefix sum of a class's last row is the class's sum. Within tiles of WIDTH rows prefix sums are
made by doubling (Hillis and Steele 1986): a row adds the one 1, 2, 4 ... before it, where that is
of its class. The tiles' last rows are scanned recursively, and each tile adds the prefix before it
to its rows of that class. About 30 M D elements are read or written for WIDTH = 16, and sums of M
rows have log2(M) roundings.
"""

import torch
from torch import Tensor

DEVICE = "any"
PRIORITY = 10

WIDTH = 16


def _running(x: Tensor, classes: Tensor) -> Tensor:
    """Inclusive prefix sums within each class, for rows [M, D] sorted by class; overwrites x."""
    m = len(x)
    if gap := -m % WIDTH:  # pad the last tile
        x = torch.cat((x, x[-1:].expand(gap, -1)))
        classes = torch.cat((classes, classes[-1:].expand(gap)))
    tiles, of = x.view(-1, WIDTH, x.shape[1]), classes.view(-1, WIDTH)
    step = 1
    while step < WIDTH:
        same = (of[:, step:] == of[:, :-step])[..., None]
        tiles[:, step:] += tiles[:, :-step].where(same, 0)
        step *= 2
    if len(tiles) > 1:
        before = _running(tiles[:-1, -1].clone(), of[:-1, -1])
        tiles[1:] += before[:, None].where((of[1:] == of[:-1, -1:])[..., None], 0)
    return x[:m]


def sums(x: Tensor, classes: Tensor) -> Tensor:
    """Sums of the rows' classes; see the package."""
    if not x.numel():
        return x.clone()
    known, order = classes.sort(stable=True)
    running = _running(x[order], known)
    return running[torch.searchsorted(known, classes, right=True) - 1]
