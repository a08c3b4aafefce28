"""Cross-entropy over a vocabulary."""

from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.functional import linear_cross_entropy
from sslfast.functional._common import check_reduction


class LinearCrossEntropyLoss(nn.Module):
    """nn.CrossEntropyLoss of a linear layer's outputs, without these outputs in memory.

    Args:
        ignore_index: the target of rows that have no loss.
        reduction: "mean" (over rows that are not ignored), "sum" or "none".
        label_smoothing: the share of probability spread over all classes, in [0, 1].

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
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return the loss."""
        return linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias,
            self.ignore_index,
            self.reduction,
            label_smoothing=self.label_smoothing,
        )
