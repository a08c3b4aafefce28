"""Cross-entropy over a vocabulary."""

from typing import Any

from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.functional import linear_cross_entropy
from sslfast.functional._linear_cross_entropy import checked_options


class LinearCrossEntropyLoss(nn.Module):
    """nn.CrossEntropyLoss of a linear layer's outputs, without these outputs in memory.

    Drop-in for cut_cross_entropy.LinearCrossEntropy too, whose arguments are in the same order.

    Args:
        ignore_index: the target of rows that have no loss.
        softcap: logits t become softcap tanh(t / softcap); None: as they are. A string in this
            place is taken for the reduction, which was here before.
        reduction: "mean" (over rows that are not ignored), "sum" or "none".
        shift: of sequences, position t predicts targets[..., t + shift].
        return_lse: return the pair (loss, log-sum-exps of the rows' logits).
        label_smoothing: the share of probability spread over all classes, in [0, 1].
        ways: what ``sslfast.functional.linear_cross_entropy`` accepts for compatibility.

    Shapes:
        hidden [..., D], weight [V, D], targets int64 [...], bias [V] or None: the inputs and the
        parameters of the last linear layer.

    Raises:
        TypeError, ValueError, IndexError: as ``sslfast.functional.linear_cross_entropy``.
    """

    @checked
    def __init__(
        self,
        ignore_index: int = -100,
        softcap: float | str | None = None,
        reduction: str = "mean",
        shift: bool | int = 0,
        *,
        return_lse: bool = False,
        label_smoothing: float = 0.0,
        **ways: Any,
    ) -> None:
        super().__init__()
        self.softcap, self.reduction = checked_options(
            softcap, reduction, return_lse, label_smoothing, ways
        )
        self.ignore_index = ignore_index
        self.shift = shift
        self.return_lse = return_lse
        self.label_smoothing = label_smoothing
        self.ways = ways

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss, with return_lse beside the log-sum-exps."""
        return linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias,
            self.ignore_index,
            self.softcap,
            self.reduction,
            self.shift,
            self.return_lse,
            label_smoothing=self.label_smoothing,
            **self.ways,
        )
