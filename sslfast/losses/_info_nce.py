"""InfoNCE with given keys, with info-nce-pytorch's constructor and forward."""

from typing import Any

from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.functional import info_nce
from sslfast.functional._common import check_embeddings, scale_of
from sslfast.losses.distributed import global_pair_rows
from sslfast.ops._logits import info_nce_from_logits
from sslfast.ops.unit_rows import unit_rows


class InfoNCE(nn.Module):
    """InfoNCE (van den Oord et al. 2018); drop-in for info-nce-pytorch's class of this name.

    Without negative keys, and with unpaired ones, the matrix of similarities is never held.

    Args:
        temperature: divides the cosine similarities; not 0.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired": negative keys [K, D]; "paired": [N, K, D].
        process_group: ranks whose keys are negatives too, where none are given; None: this one
            alone. Gradients averaged over ranks (DDP, FSDP) are those of one process with the
            global batch; the loss is W / N times the sum over this rank's queries.

    Shapes:
        query, positive_key: [N, D]; negative_keys: None for the other rows' keys, or as above.

    Raises:
        TypeError, ValueError: as ``sslfast.functional.info_nce``; with a process_group, given
            negative keys, or a reduction other than "mean".
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        negative_mode: str = "unpaired",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if process_group is not None and reduction != "mean":
            raise ValueError(f"over several ranks reduction must be 'mean', got {reduction!r}")
        self.process_group = process_group
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        """Return the loss of queries [N, D] against their keys [N, D]."""
        if self.process_group is not None:
            return self._global(query, positive_key, negative_keys)
        return info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            self.reduction,
            self.negative_mode,
        )

    def _global(self, query: Tensor, key: Tensor, negative_keys: Tensor | None) -> Tensor:
        if negative_keys is not None:
            raise ValueError(
                "with a process_group the negatives are the keys of all ranks: leave negative_keys "
                "out, or gather them yourself and leave the process_group out"
            )
        query, key = check_embeddings(query=query, positive_key=key)
        scale = scale_of(self.temperature, query)
        q, k = unit_rows(query), unit_rows(key)
        lse, _, positive, factor = global_pair_rows(q, k, scale, self.process_group, both=False)
        losses = info_nce_from_logits(lse, positive, unit=True)
        return (factor * losses.sum()).to(scale.dtype)
