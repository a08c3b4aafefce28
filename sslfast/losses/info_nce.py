"""InfoNCE with given keys, with info-nce-pytorch's constructor and forward."""

from torch import Tensor, nn

from sslfast.functional import info_nce


class InfoNCE(nn.Module):
    """InfoNCE (van den Oord et al. 2018); drop-in for info-nce-pytorch's class of this name.

    Without negative keys, and with unpaired ones, the matrix of similarities is never held.

    Args:
        temperature: divides the cosine similarities; not 0.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired": negative keys [K, D]; "paired": [N, K, D].

    Shapes:
        query, positive_key: [N, D]; negative_keys: None for the other rows' keys, or as above.

    Raises:
        TypeError, ValueError: as ``sslfast.functional.info_nce``.
    """

    def __init__(
        self, temperature: float = 0.1, reduction: str = "mean", negative_mode: str = "unpaired"
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        """Return the loss of queries [N, D] against their keys [N, D]."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            self.reduction,
            self.negative_mode,
        )
