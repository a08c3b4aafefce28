"""The symmetric loss of CLIP."""

from torch import Tensor

from sslfast._arguments import checked
from sslfast.functional._common import as_scale, check_embeddings, reduce
from sslfast.functional._variants import Variant
from sslfast.ops.similarity_softmax import similarity_softmax


@checked
def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    reduction: str = "mean",
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    The mean of two cross-entropies over logits s <image_i, text_j>: of the text of each image, and
    of the image of each text. Features are taken as they are: normalise them first, as CLIP does.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i belonging to image i.
        logit_scale: s, a number or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N] of the pairs).
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, equation 6).
        debiased: tau+, the share of false negatives to correct for, in [0, 1); supposes features
            of unit length (Chuang et al. 2020, equation 8).
        label_smoothing: share of the target spread over all candidates, as F.cross_entropy does.

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, options out of range or more than one
            of the last three.
    """
    image_features, text_features = check_embeddings(
        image_features=image_features, text_features=text_features
    )
    variant = Variant(decoupled, debiased, label_smoothing)
    scale = as_scale(logit_scale, image_features)
    lse, positive, lse_columns = similarity_softmax(
        image_features,
        text_features,
        scale,
        shift=0,
        column_base=0,
        leave_out_self=False,
        normalize=False,
        column_lse=True,
    )

    def losses(lse: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Of the rows x among the columns y."""

        def mean_logit() -> Tensor:
            # The mean in float32 makes the product so: no float32 copy of x or y is kept.
            return scale * (x * y.mean(0, dtype=scale.dtype)).sum(1)

        return variant.losses(lse, positive, scale, len(x) - 1, mean_logit, unit=False)

    both = losses(lse, image_features, text_features)
    both = both + losses(lse_columns, text_features, image_features)
    return reduce(both / 2, reduction).to(scale.dtype)
