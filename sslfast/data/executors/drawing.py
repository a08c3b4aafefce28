"""What executors of images and videos share: random draws, and the colours at the end."""

import torch
from torch import Tensor

from sslfast.data.executors.executor import Planned
from sslfast.data.order import EpochPlan
from sslfast.data.views.color import recolor
from sslfast.data.views.draws import Draw, draw
from sslfast.data.views.view import View


class Drawer:
    """The draws of planned batches.

    Random numbers are drawn for several steps at once, as the cost is in the calls; but not for so
    many that torch would share out the work among its threads (see color.py).

    Args:
        views: of the recipe.
        sizes: (height, width) of each sample in pixels.
        batch_size: of each batch.
        seed: of the draws.
    """

    def __init__(
        self,
        views: tuple[View, ...],
        sizes: list[tuple[int, int]],
        batch_size: int,
        seed: int,
    ) -> None:
        self._views, self._seed = views, seed
        self._sizes = torch.tensor(sizes).view(-1, 2).clamp_min(1)
        self._steps = max(1, 1024 // max(1, len(views)) // batch_size)
        self._drawn: tuple[EpochPlan, int, list[Draw]] | None = None

    def draws(self, batch: Planned) -> list[Draw]:
        """One Draw for each view."""
        block, row = divmod(batch.step, self._steps)
        if self._drawn is None or self._drawn[0] is not batch.plan or self._drawn[1] != block:
            steps = slice(block * self._steps, (block + 1) * self._steps)
            ids, places = (part[steps].flatten() for part in batch.plan)
            sizes = self._sizes[ids]
            drawn = draw(self._views, places, sizes, epoch=batch.epoch, seed=self._seed)
            self._drawn = batch.plan, block, drawn
        size = len(batch.ids)
        return [one.rows(slice(row * size, (row + 1) * size)) for one in self._drawn[2]]

    def forget(self) -> None:
        """Free what was drawn."""
        self._drawn = None


def recolored(images: Tensor, view: View, draw: Draw) -> Tensor:
    """Images [B, 3, H, W] or clips [B, 3, T, H, W] in [0, 1], with the colours of a view.

    As they are where the view changes none: they are normalised already.
    """
    if not view.recolors:
        return images
    flat = images.flatten(2, -2)  # a clip keeps its colours: one tall image
    return recolor(flat, view, draw.matrix, draw.lift, draw.solarize).view_as(images)
