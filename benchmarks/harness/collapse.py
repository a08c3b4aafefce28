"""Methods without the one thing that keeps their embeddings from collapsing, and with it.

Both are trained by the method's small configuration, but with the colours of its paper: mild ones,
which the small configuration takes, let a method agree on two views without forgetting what is in
them. Embeddings are looked at, which the loss is taken of, for the encoder's features before them
may keep more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from sslfast import methods
from sslfast.eval import feature_health
from sslfast.methods.registry import register

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Ablation:
    """What is taken out of a method, or nothing.

    Attributes:
        method: whose small configuration is trained.
        embeddings: those of one view [N, D], of what the method's ``encode`` returns.
        settings: changed ones, of the method as it is, too.
        method_args: changed hyperparameters.
        change: makes another class of the method's; None: the hyperparameters are all.
    """

    method: str
    embeddings: Callable[[Any], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    method_args: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None

    def register(self, name: str) -> str:
        """Make the changed method known, and say by what name it is trained."""
        changed = name.replace(" ", "_")
        if changed not in methods.names():
            found = methods.get(self.method)
            found = found if self.change is None else self.change(found)
            register(changed)(watched(found, self.embeddings))
        return changed


def watched(method: Any, embeddings: Callable[[Any], Tensor]) -> Any:
    """A method that also logs the effective rank of its embeddings, of unit length."""

    class Watched(method):  # type: ignore[misc]
        def loss(self, outputs: Any, ctx: Any) -> dict[str, Tensor]:
            rows = nn.functional.normalize(embeddings(outputs).detach().float(), dim=1)
            rank = torch.tensor(feature_health(rows)["effective_rank"])
            return {**super().loss(outputs, ctx), "embedding_rank": rank}

    return Watched


def without_predictor(byol: Any) -> Any:
    """BYOL whose student has to equal the teacher, not to predict it."""

    class BYOLWithoutPredictor(byol):  # type: ignore[misc]
        @wraps(byol.__init__)  # its hyperparameters are known by its signature
        def __init__(self, encoder: nn.Module, **keywords: Any) -> None:
            super().__init__(encoder, **keywords)
            self.predictor = nn.Identity()

    return BYOLWithoutPredictor


def without_stop_gradient(simsiam: Any) -> Any:
    """SimSiam whose gradient flows into the targets, too."""

    class SimSiamWithoutStopGradient(simsiam):  # type: ignore[misc]
        def loss(self, outputs: Any, ctx: Any) -> dict[str, Tensor]:
            (p0, p1), (z0, z1) = outputs
            stopped = super().loss(outputs, ctx)
            loss = (self.criterion(p0, z1) + self.criterion(p1, z0)) / 2
            return {**stopped, "loss": loss}

    return SimSiamWithoutStopGradient


HARD = {"recipe_args": {"blur_prob": 0.0}, "epochs": 10}
CROPS = {"recipe_args": {"blur_prob": 0.0, "local": {"count": 4}}, "epochs": 10}


def pair(
    method: str, without: str, embeddings: Callable[[Any], Tensor], *, lr: float | None = None,
    method_args: dict[str, Any] | None = None, change: Change | None = None,
    settings: dict[str, Any] = HARD,
) -> dict[str, Ablation]:  # fmt: skip
    """A method as it is and without something, which are ``method_args`` or a ``change``."""
    settings = settings if lr is None else {**settings, "lr": lr}
    return {
        f"{method} as it is": Ablation(method, embeddings, settings),
        f"{method} without {without}": Ablation(
            method, embeddings, settings, method_args or {}, change
        ),
    }


def first_target(outputs: Any) -> Tensor:
    """Targets of the first view, of a method that returns predictions and targets of both."""
    return outputs[1][0]


ABLATIONS = {
    **pair("byol", "predictor", first_target, lr=1e-2, change=without_predictor),
    **pair("lejepa", "SIGReg", lambda outputs: outputs[:, 0], method_args={"lambda_param": 0.0}),
    **pair("simsiam", "stop-gradient", first_target, change=without_stop_gradient),
    **pair(
        "dino", "centering", lambda outputs: outputs[0][0],
        method_args={"center_momentum": 1.0}, settings=CROPS,
    ),
    **pair(
        "swav", "Sinkhorn", lambda outputs: outputs[0],
        method_args={"sinkhorn_iterations": 0}, settings=CROPS,
    ),
    **pair("vicreg", "variance", lambda outputs: outputs[0], method_args={"std_coeff": 0.0}),
}  # fmt: skip
