"""The pairwise sigmoid loss of SigLIP."""

import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._common import (
    as_scale,
    check_embeddings,
    check_reduction,
    reduce,
    row_weights,
)
from sslfast.ops.sigmoid_contrast import sigmoid_contrast, weighted_sigmoid_contrast


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
    forward pass, 6 N^2 D FLOP in all; "none" takes 8.

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
    tensors = image_features, text_features, scale, bias
    if reduction != "none" and torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        weight = row_weights(len(image_features), reduction, scale)
        return weighted_sigmoid_contrast(*tensors, weight, 0, text_features.requires_grad)[0]
    return reduce(sigmoid_contrast(*tensors, 0), reduction)
