"""RotNet: tell by how many quarter turns an image was rotated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.data.batch import Batch
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.masked import only_view
from sslfast.methods.registry import register


@register("rotnet")
class RotNet(Method):
    """RotNet (arXiv:1803.07728): cross-entropy over the four rotations of every image.

    All four turns of an image are in the batch, so an encoder sees four times its images. Turns are
    made of flips and transposes of the view, which leave no trace of resampling.

    Args:
        encoder: maps a square view [B, C, S, S] to features [B, F].
    """

    recipe = "rotnet"
    reference = Reference(
        "Gidaris et al. 2018, arXiv:1803.07728",
        {  # of ImageNet, on an AlexNet, its rate divided by 10 after 15, 30 and 45 epochs
            **{"model": "resnet50", "batch_size": 192, "epochs": 50, "optimizer": "SGD, Nesterov"},
            **{"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
        },
    )

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.classifier = nn.Linear(int(encoder.num_features), 4)  # type: ignore[arg-type]

    def encode(self, batch: Batch, ctx: Context) -> Tensor:
        """The logits [B, 4, 4] of each image: its turns by the turns they may be."""
        images = only_view(batch)
        logits = self.classifier(self.encoder(rotations(images).flatten(0, 1)))
        return logits.unflatten(0, (4, len(images))).transpose(0, 1)

    def loss(self, outputs: Tensor, ctx: Context) -> dict[str, Tensor]:
        """Cross-entropy in nats (guessing: log 4), and the share of turns that are told."""
        logits = outputs.flatten(0, 1).float()
        turns = torch.arange(4, device=logits.device).repeat(len(outputs))
        right = (logits.detach().argmax(1) == turns).float().mean()
        return {"loss": F.cross_entropy(logits, turns), "rotation_accuracy": right}

    def pictures(self, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """The four turns of each image."""
        names = ("original", "90 degrees", "180 degrees", "270 degrees")
        return dict(zip(names, rotations(only_view(batch)), strict=True))


def rotations(images: Tensor) -> Tensor:
    """Images [B, C, S, S] turned by 0, 90, 180 and 270 degrees, counter-clockwise: [4, B, C, S, S].

    Raises:
        ValueError: images that are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(
            f"rotnet turns square views, got {height} x {width}: choose a recipe of square ones"
        )
    return torch.stack([torch.rot90(images, turns, (-2, -1)) for turns in range(4)])
