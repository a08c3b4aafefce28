"""The pairwise sigmoid loss of SigLIP; its class has the constructor and forward of open_clip's."""

from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.exchange import check_rank
from sslfast.kernels.sigmoid_contrast.op import sigmoid_contrast, weighted_sigmoid_contrast
from sslfast.kernels.sigmoid_contrast.ranks import global_sigmoid
from sslfast.losses._inputs import (
    as_scale,
    check_embeddings,
    check_reduction,
    plain_logits,
    reduce,
    row_weights,
)


@checked
def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3.2).

    Every image and text are a yes-or-no question of their own: with t_ij = s <image_i, text_j> + b,
    l_i = log(1 + exp(-t_ii)) + sum_{j != i} log(1 + exp(t_ij)). Features are taken as they are:
    normalise them first, as SigLIP does. The gradients of "mean" and "sum" are formed in the
    forward pass, 6 N^2 D FLOP in all, 4 where one tower needs none (LiT); "none" takes 8.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i belonging to image i.
        logit_scale: s, a number or a 0-d tensor, which may need a gradient.
        logit_bias: b, a number or a 0-d tensor, which may need a gradient.
        reduction: "mean" (over images), "sum" or "none" (losses [N] of the images).

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit.
    """
    image_features, text_features = check_embeddings(
        image_features=image_features, text_features=text_features
    )
    check_reduction(reduction)
    scale, bias = (as_scale(x, image_features) for x in (logit_scale, logit_bias))
    if reduction != "none" and text_features.requires_grad and not image_features.requires_grad:
        # Every pair counts the same from both its ends: the rows are what needs a gradient.
        image_features, text_features = text_features, image_features
    tensors = image_features, text_features, scale, bias
    if reduction != "none" and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        weight = row_weights(len(image_features), reduction, scale)
        return weighted_sigmoid_contrast(
            *tensors, weight, column_base=0, columns_gradient=text_features.requires_grad
        )[0]
    return reduce(sigmoid_contrast(*tensors, column_base=0), reduction)


EXCHANGES = {None: "gather", "gather": "gather", "bidir": "ring", "shift": "ring", "reduce": "ring"}


class SigLipLoss(nn.Module):
    """Pairwise sigmoid loss (Zhai et al. 2023); drop-in for open_clip's class of this name.

    Memory grows linearly with the batch. Over several ranks, negatives are the texts of all ranks,
    and gradients averaged over ranks (DDP, FSDP) are those of one process with the global batch,
    with batches of different sizes too. A tower that needs no gradient (LiT, Zhai et al. 2022,
    arXiv:2111.07991) costs no products for it, over ranks neither.

    Args:
        cache_labels: accepted for compatibility; no labels are made.
        rank: this process; must be the rank that torch.distributed knows.
        world_size: ranks to take texts from; 1: none.
        dist_impl: "gather" (or None) brings the features of all ranks here at once; open_clip's
            "bidir", "shift" and "reduce" all mean one rank's at a time, around a ring.
        chunk_size: accepted for compatibility with open_clip 4; memory is linear in N anyway.
        process_group: the ranks to take texts from; None: all.

    Raises:
        ValueError: another dist_impl, or a rank or world_size other than torch.distributed's; in
            forward, shapes, dtypes or devices that do not fit.
        TypeError: in forward, features that are no floating-point tensors.
    """

    @checked
    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if dist_impl not in EXCHANGES:
            raise ValueError(f"dist_impl must be one of {tuple(EXCHANGES)}, got {dist_impl!r}")
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size
        self.process_group = process_group

    def get_ground_truth(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        num_logits: int,
        negative_only: bool = False,
    ) -> Tensor:
        """1 for pairs and -1 for all others [N, N]; the loss makes no use of it."""
        labels = torch.full((num_logits, num_logits), -1, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """Return the matrix of logits [N, N], images by texts; the loss makes no use of it."""
        return plain_logits(image_features, text_features, logit_scale, logit_bias)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of features [N, D], as a dict {"contrastive_loss": ...} where asked.

        A logit_bias of None is none, as in open_clip.
        """
        logit_bias = 0.0 if logit_bias is None else logit_bias
        if self.world_size > 1:
            image_features, text_features = check_embeddings(
                image_features=image_features, text_features=text_features
            )
            check_rank("SigLipLoss", self.rank, self.world_size, self.process_group)
            loss = global_sigmoid(
                image_features,
                text_features,
                as_scale(logit_scale, image_features),
                as_scale(logit_bias, image_features),
                self.process_group,
                EXCHANGES[self.dist_impl],
            )
        else:
            loss = siglip(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss
