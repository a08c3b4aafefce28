"""A network of released weights that others learn from: it is run, never trained."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import BadArgument
from sslfast.models.encoder_file import FILE_NAME, encoder_path, read_encoder


class Numbers(NamedTuple):
    """How views are normalised: (x - mean) / std for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Frozen(nn.Module):
    """An encoder in evaluation mode, without gradients, whatever the views that it is given.

    Args:
        module: maps images [B, C, H, W] to features [B, num_features].
        size: side of the images that it takes, to which others are resized; None: any.
        own: how its images are normalised; None: as the views are.
        views: how the views are.

    Raises:
        ValueError: an encoder of other data than images, or a module without ``num_features``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, module: nn.Module, size: int | None, own: Numbers | None, views: Numbers
    ) -> None:
        super().__init__()
        kind = getattr(module, "modality", "image")
        if kind != "image":
            raise ValueError(f"the teacher is an encoder for {kind}, and the views are images")
        if not isinstance(getattr(module, "num_features", None), int):
            raise ValueError(
                f"the teacher, a {type(module).__name__}, has no num_features, the width of its "
                "features: set it"
            )
        self.module = module.requires_grad_(False)
        self.num_features = int(module.num_features)  # type: ignore[arg-type]
        self.views, self.size, self.same = views, size, own is None or own == views
        ours, theirs = ([torch.tensor(x)[:, None, None] for x in n] for n in (own or views, views))
        self.register_buffer("scale", theirs[1] / ours[1])
        self.register_buffer("shift", (theirs[0] - ours[0]) / ours[1])
        self.eval()

    @classmethod
    def of(cls, given: str | Path | nn.Module | None, views: Numbers) -> "Frozen":
        """From an encoder's file, or the module itself.

        Raises:
            BadArgument: there is no such file, or a folder.
            ValueError: nothing is given; a file that holds no encoder of images.
        """
        if given is None:
            raise ValueError(
                f"distill needs a teacher: set method_args.teacher to the {FILE_NAME} of a "
                "finished run"
            )
        if isinstance(given, nn.Module):
            return cls(given, None, None, views)
        path = Path(given)
        if path.is_dir():
            raise BadArgument(
                "teacher", f"must be a file, got the folder {path}: give its {FILE_NAME}"
            )
        if not path.is_file():
            raise BadArgument(
                "teacher", f"must be the {FILE_NAME} of a run, got {path}: no such file"
            )
        module, told = read_encoder(encoder_path(path))
        if told.get("num_frames") is not None:
            raise ValueError(f"the teacher in {path} takes videos, and the views are images")
        own = None
        if told.get("mean") is not None:
            own = Numbers(tuple(told["mean"]), tuple(told["std"]))
        return cls(module, told.get("image_size"), own, views)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> Any:
        """Views [B, C, H, W] -> features [B, num_features]."""
        if self.size is not None and views.shape[-2:] != (self.size, self.size):
            size = self.size, self.size
            views = F.interpolate(views, size, mode="bilinear", antialias=True)
        if not self.same:
            views = views * self.scale + self.shift
        return self.module(views)
