"""The loss of masked autoencoders."""

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeFloat, checked
from sslfast.kernels.masked_mse.op import masked_mse as op
from sslfast.losses._inputs import reduce
from sslfast.masking.patch_functions import check_data, check_like


@checked
def masked_mse(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    norm_target: bool = False,
    eps: NonNegativeFloat = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error over hidden patches, the loss of MAE.

    He et al. 2022, arXiv:2111.06377, section 3: l_bl = mean_p (x_blp - y_blp)^2, averaged over the
    hidden patches. With ``norm_target`` (norm_pix_loss in the published code) y is the target
    minus the patch's mean, over sqrt(var + eps), the variance with P - 1 below; otherwise the
    target itself. VideoMAE's code divides by sqrt(var) + eps, the same but for flat patches.

    Args:
        prediction: [B, L, P], float16, bfloat16, float32 or float64.
        target: [B, L, P] of the same dtype and device; it may need a gradient.
        mask: bool [B, L], true = hidden.
        norm_target: normalise every patch of the target.
        eps: added to the variance.
        reduction: "mean" over all hidden patches of the batch (NaN if there is none), "sum", or
            "none" (losses [B, L], 0 where not hidden).

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: data that are no floating-point tensors, a mask that is not bool.
        ValueError: shapes, dtypes or devices that do not fit, patches of one number to normalise,
            another reduction.
    """
    check_data("prediction", prediction, "[B, L, P]")
    check_data("target", target, "[B, L, P]")
    check_like("target", target, tuple(prediction.shape), prediction)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (true = hidden), got {got}")
    if mask.shape != prediction.shape[:2] or mask.device != prediction.device:
        raise ValueError(
            f"mask must be {list(prediction.shape[:2])} on {prediction.device}, "
            f"got {list(mask.shape)} on {mask.device}"
        )
    if norm_target and prediction.shape[2] < 2:
        raise ValueError("norm_target needs patches of at least 2 numbers: one has no variance")
    rows = (prediction.flatten(0, 1), target.flatten(0, 1), mask.flatten())
    loss = op(*rows, norm_target, eps).view_as(mask)
    return loss.sum() / mask.sum() if reduction == "mean" else reduce(loss, reduction)
