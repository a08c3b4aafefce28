"""The supervised contrastive loss."""

from torch import Tensor, nn

from sslfast.functional import supcon


class SupConLoss(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020, L_out); see sslfast.functional.supcon.

    Args:
        temperature: divides the cosine similarities; not 0.

    Shapes:
        features [M, D], labels int64 [M]; returns the mean over rows that have a positive.

    Raises:
        TypeError, ValueError: as ``sslfast.functional.supcon``.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss."""
        return supcon(features, labels, self.temperature)
