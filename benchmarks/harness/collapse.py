"""Methods without the one thing that keeps their features from collapsing to a point."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import Tensor, nn

from sslfast import methods
from sslfast.methods.registry import register


@dataclass(frozen=True)
class Ablation:
    """What is taken out of a method.

    Attributes:
        method: whose small configuration is trained.
        method_args: changed ones.
        change: makes another class of the method's; None: the hyperparameters are all.
    """

    method: str
    method_args: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], Any] | None = None

    def register(self, name: str) -> str:
        """Make the changed method known, and say by what name it is trained."""
        if self.change is None:
            return self.method
        changed = name.replace(" ", "_")
        if changed not in methods.names():
            register(changed)(self.change(methods.get(self.method)))
        return changed


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


ABLATIONS = {
    "byol without predictor": Ablation("byol", change=without_predictor),
    "simsiam without stop-gradient": Ablation("simsiam", change=without_stop_gradient),
    "vicreg without variance": Ablation("vicreg", {"std_coeff": 0.0}),
}
