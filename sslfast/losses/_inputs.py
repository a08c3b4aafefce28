"""What the losses share: checks of their inputs, scales, reductions."""

import torch
from torch import Tensor

from sslfast.kernels.dtypes import FLOATS, accumulation_dtype


def check_embeddings(
    same_rows: bool = True, matrices: bool = True, /, **tensors: Tensor
) -> tuple[Tensor, ...]:
    """Raise unless all are non-empty [N, D] matrices of one shape, floating dtype and device.

    Under autocast their dtypes may differ, float64 aside: they come back in autocast's, as its
    products would take them.

    Args:
        same_rows: whether N must be the same, and not only D.
        matrices: False: they may have any one shape.
        tensors: by the names that messages use.

    Returns:
        The tensors, of one dtype.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong or different shapes, empty, or different dtypes or devices.
    """
    first_name, first = next(iter(tensors.items()))
    what = "shape" if same_rows else "dimension"
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must hold floating-point embeddings, got {x.dtype}")
        if matrices and x.dim() != 2:
            raise ValueError(f"{name} must have shape [N, D], got {list(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"{name} is empty: shape {list(x.shape)}")
        start = 0 if same_rows else 1
        if x.shape[start:] != first.shape[start:]:
            raise ValueError(
                f"{first_name} and {name} must have the same {what}, "
                f"got {list(first.shape)} and {list(x.shape)}"
            )
        if x.device != first.device:
            raise ValueError(f"{first_name} is on {first.device}, but {name} is on {x.device}")
    return _of_one_dtype(tensors)


def _of_one_dtype(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    (first_name, first), *_ = tensors.items()
    other = next(((name, x) for name, x in tensors.items() if x.dtype != first.dtype), None)
    if other is None:
        return tuple(tensors.values())
    device = first.device.type
    wide = any(x.dtype == torch.float64 for x in tensors.values())
    if wide or not torch.is_autocast_enabled(device):
        raise ValueError(f"{first_name} is {first.dtype}, but {other[0]} is {other[1].dtype}")
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors.values())


def check_rows(rows: int) -> None:
    """Raise ValueError unless there are two rows at least: one has no variance."""
    if rows < 2:
        raise ValueError(f"this loss needs at least 2 rows, of all ranks together, got {rows}")


def check_labels(features: Tensor, labels: Tensor, name: str = "labels") -> None:
    """Raise unless features are embeddings [M, D] and labels integers [M] on the same device.

    Raises:
        TypeError: features that are no floating-point tensor, labels that are no integers.
        ValueError: shapes or devices that do not fit.
    """
    check_embeddings(features=features)
    m = len(features)
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers, int64 or int32, got {labels.dtype}")
    if labels.shape != (m,) or labels.device != features.device:
        raise ValueError(
            f"{name} must have shape [{m}] on {features.device}, got {list(labels.shape)} "
            f"on {labels.device}"
        )


def check_temperature(temperature: float | Tensor) -> None:
    """Raise ValueError unless it is a number other than 0, or a tensor of one element.

    Negative numbers are allowed; below 1e-8 in magnitude it is taken for 0, as lightly does. What a
    tensor holds is not looked at.
    """
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise ValueError(f"temperature must be one number, got {list(temperature.shape)}")
    elif not abs(temperature) >= 1e-8:
        raise ValueError(f"temperature must be at least 1e-8 in magnitude, got {temperature}")


def scale_of(temperature: float | Tensor, like: Tensor) -> Tensor:
    """1 / temperature as the 0-d tensor that the op takes; gradients reach a tensor temperature.

    Raises:
        ValueError: as ``check_temperature``.
    """
    check_temperature(temperature)
    if isinstance(temperature, Tensor):
        return as_scale(temperature, like).reciprocal()
    return as_scale(1.0 / temperature, like)


def scale_in_halves(temperature: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Two factors whose product is 1 / temperature: of queries, and of keys; None for 1.

    For ops that take the scale within their rows. float16 ends at 65,504: where the scale might
    come near it, keys take a power of two that is about its root, which rounds nothing.
    """
    scale = scale_of(temperature, like)
    in_range = not isinstance(temperature, Tensor) and abs(temperature) >= 2**-14
    if like.dtype != torch.float16 or in_range:
        return scale, None
    of_keys = torch.exp2(torch.frexp(scale.detach()).exponent.clamp_min(0) // 2)
    return scale / of_keys, of_keys


def as_scale(logit_scale: float | Tensor, like: Tensor) -> Tensor:
    """A scale as the 0-d tensor that the op takes; gradients reach a tensor.

    Raises:
        ValueError: a tensor of more than one element.
    """
    dtype = accumulation_dtype(like.dtype)
    if not isinstance(logit_scale, Tensor):
        return torch.full((), logit_scale, dtype=dtype, device=like.device)
    if logit_scale.numel() != 1:
        raise ValueError(f"the scale must be one number, got {list(logit_scale.shape)}")
    return logit_scale.reshape(()).to(device=like.device, dtype=dtype)


def plain_logits(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> Tensor:
    """The matrix of logits [N, N], images by texts, which no loss here holds."""
    logits = logit_scale * image_features @ text_features.T
    return logits if logit_bias is None else logits + logit_bias


def with_bias(loss: Tensor, logit_bias: float | Tensor | None) -> Tensor:
    """The loss, which a bias common to all logits leaves as it is, with the bias's gradient of 0.

    DDP waits for the gradient of every parameter.

    Raises:
        ValueError: a tensor that is no single floating-point number.
    """
    if not isinstance(logit_bias, Tensor):
        return loss
    if not logit_bias.is_floating_point() or logit_bias.numel() != 1:
        raise ValueError(
            f"logit_bias must be one floating-point number, got {list(logit_bias.shape)} of "
            f"{logit_bias.dtype}: ids and negatives are given by name, as group_ids=..."
        )
    return loss + 0 * logit_bias.sum()


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless it is "none", "mean" or "sum"."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Apply "none", "mean" or "sum" to per-row losses.

    Raises:
        ValueError: another reduction.
    """
    check_reduction(reduction)
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    return loss


def row_weights(n: int, reduction: str, like: Tensor) -> Tensor:
    """What a mean or a sum weighs every row with [N], of the dtype and device of ``like``."""
    value = 1 / n if reduction == "mean" else 1.0
    return torch.full((n,), value, dtype=like.dtype, device=like.device)
