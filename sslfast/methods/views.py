"""What the methods that compare views of an image share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslfast.ema import EMATeacher
from sslfast.losses.prototypes import Comparison
from sslfast.methods.base import Progress
from sslfast.models import PrototypeHead
from sslfast.models.crops import of_sizes
from sslfast.optim.schedules import warmup_cosine


class Network(nn.Module):
    """An encoder and its head, and another for patches where there is one.

    Args:
        encoder: maps views [B, C, H, W] to features [B, F].
        head: maps these to unit vectors.
    """

    patch_head: PrototypeHead | None

    def __init__(self, encoder: nn.Module, head: PrototypeHead) -> None:
        super().__init__()
        self.encoder, self.head, self.patch_head = encoder, head, None

    def forward(self, x: Tensor) -> Tensor:
        """Views [B, C, H, W] -> unit vectors [B, D]."""
        return self.head(self.encoder(x))

    def forward_crops(self, images: list[Tensor]) -> list[Tensor]:
        """The same of images of several sizes, in one pass of an encoder that can."""
        return [self.head(features) for features in of_sizes(self.encoder, images)]


def network_of(teacher: EMATeacher) -> Network:
    """The teacher's copy of a Network."""
    assert isinstance(teacher.module, Network)
    return teacher.module


def use_batch_statistics(teacher: nn.Module) -> None:
    """Let a teacher's batch norms take the statistics of its batches, and nothing else train.

    Its dropout and stochastic depth stay off: targets are made by the whole network.
    """
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def check_global_views(recipe: Any, count: int) -> None:
    """Refuse recipes that do not begin with so many views of one size.

    Raises:
        ValueError: fewer views, or of other sizes.
    """
    shapes: Sequence[tuple[int, ...]] = recipe.view_shapes[:count]
    if len(shapes) < count or len(set(shapes)) > 1:
        raise ValueError(
            f"the first {count} views must be of one size, whole images that a teacher sees: "
            "choose a recipe that begins with them, such as dino or byol"
        )


def few_samples(prototypes: int, samples: int, setting: str = "out_dim") -> list[str]:
    """What is to be said where every sample could have a prototype of its own."""
    if prototypes <= samples:
        return []
    return [
        f"there are {prototypes:,} prototypes for {samples:,} images, which can all have one of "
        f"their own: fewer (method_args.{setting}) may be enough"
    ]


def set_apart(
    groups: list[dict[str, Any]], parameters: Iterable[nn.Parameter], **options: Any
) -> list[dict[str, Any]]:
    """Groups of parameters without some of them, which are a last group with options of its own."""
    own = list(parameters)
    chosen = set(own)
    others = [{**g, "params": [p for p in g["params"] if p not in chosen]} for g in groups]
    return [g for g in (*others, {"params": own, **options}) if g["params"]]


def use_of_prototypes(found: Comparison) -> dict[str, Tensor]:
    """The mean "entropy" of a teacher's softmaxes, and how many "prototypes" they use, for the log.

    The latter is the exponential of the entropy of their mean: K if all are used alike, else fewer.
    """
    used = torch.special.entr(found.usage).sum().exp()
    return {"entropy": found.entropy.mean(), "prototypes": used}


def spread(embeddings: Tensor) -> Tensor:
    """How far embeddings [N, D] lie apart: 0 is a collapse to one point, 1 even on the sphere.

    sqrt(D) times the mean deviation of a coordinate over rows of unit length (Chen and He 2020,
    arXiv:2011.10566, section 4.1).

    Returns:
        A 0-dim float32 tensor without a gradient.
    """
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        rows = F.normalize(embeddings.detach().float(), dim=1)
        return rows.std(0, correction=0).mean() * math.sqrt(rows.shape[1])


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine similarity of pairs [N, D], float32 without a gradient: 1 when all agree."""
    return F.cosine_similarity(first.detach().float(), second.detach().float()).mean()


def cosine_momentum(start: float, progress: Progress) -> float:
    """A teacher's momentum that rises from ``start`` to 1 by half a cosine (BYOL, section 3.3)."""
    return warmup_cosine(progress.step, peak=start, warmup=0, total=progress.total_steps, end=1.0)
