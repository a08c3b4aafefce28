"""The symmetric loss of CLIP."""

from torch import Tensor

from sslfast.ops.similarity_softmax import similarity_softmax

from ._common import as_scale, check_embeddings, info_nce_from_logits, reduce


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    reduction: str = "mean",
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    The mean of two cross-entropies over logits s <image_i, text_j>: of the text of each image, and
    of the image of each text. Features are taken as they are: normalise them first, as CLIP does.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i belonging to image i.
        logit_scale: s, a number or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N] of the pairs).

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_embeddings(image_features=image_features, text_features=text_features)
    lse, positive, lse_columns = similarity_softmax(
        image_features,
        text_features,
        as_scale(logit_scale, image_features),
        shift=0,
        column_base=0,
        leave_out_self=False,
        normalize=False,
        column_lse=True,
    )
    image, text = (info_nce_from_logits(side, positive) for side in (lse, lse_columns))
    return reduce((image + text) / 2, reduction)
