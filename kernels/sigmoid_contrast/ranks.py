"""The sigmoid loss over the pairs of all ranks; distributed.py says what a rank returns."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.exchange import Exchange, Group, name_of
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.sigmoid_contrast.op import sigmoid_contrast, weighted_sigmoid_contrast


@torch.library.custom_op(f"{NAMESPACE}::global_sigmoid_contrast", mutates_args=())
def global_sigmoid_contrast(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: str, how: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W / N times the sum of the sigmoid losses of this rank's images against all texts.

    Weights are known beforehand, so the gradients are formed here: those of the images from their
    rows, those of the texts from the same loss with the roles exchanged.

    Args:
        image: unit features [n, D] of this rank; n may differ between ranks.
        text: those of the texts [n, D].
        scale: 0-d.
        bias: 0-d.
        group: ``name_of`` the process group.
        how: "gather" or "ring".
        gradients: form them.

    Returns:
        The loss, 0-d, and the gradients of image and text (empty where not asked for), scale and
        bias, all in the accumulation dtype.
    """
    exchange = Exchange.of(image, group, how)
    factor = exchange.factor
    weight = torch.full((len(image),), factor, dtype=scale.dtype, device=image.device)
    total, d_scale, d_bias = (torch.zeros_like(scale) for _ in range(3))
    shape = image.shape if gradients else (0,)
    d_image, d_text = (scale.new_zeros(shape) for _ in range(2))
    for own, (images, texts) in exchange.blocks(image, text):
        if not gradients:
            total += factor * sigmoid_contrast(image, texts, scale, bias, own).sum()
            continue
        loss, d_rows, _, d_s, d_b = weighted_sigmoid_contrast(
            *(image, texts, scale, bias, weight), column_base=own, columns_gradient=False
        )
        for sum_, part in ((total, loss), (d_scale, d_s), (d_bias, d_b), (d_image, d_rows)):
            sum_ += part
        d_text += weighted_sigmoid_contrast(
            *(text, images, scale, bias, weight), column_base=own, columns_gradient=False
        )[1]
    return total, d_image, d_text, d_scale, d_bias


@global_sigmoid_contrast.register_fake
def _(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: str, how: str, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_image, d_text = (scale.new_empty(image.shape if gradients else (0,)) for _ in range(2))
    total, d_scale, d_bias = (torch.empty_like(scale) for _ in range(3))
    return total, d_image, d_text, d_scale, d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: Any, upstream: Tensor | None, *d_gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_double_backward(d_gradients)
    if upstream is None:
        return (None,) * 7
    d_image, d_text, d_scale, d_bias = ctx.saved_tensors
    d_image, d_text = (times(d, upstream, ctx.dtype) for d in (d_image, d_text))
    return d_image, d_text, upstream * d_scale, upstream * d_bias, None, None, None


global_sigmoid_contrast.register_autograd(_backward, setup_context=_setup_context)


def global_sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Group, how: str = "gather"
) -> Tensor:
    """This rank's share of the sigmoid loss over the pairs of all ranks.

    Args:
        image: unit features [n, D] of this rank; n may differ between ranks.
        text: those of the texts [n, D].
        scale: 0-d.
        bias: 0-d.
        group: the process group, or None for all ranks.
        how: "gather" or "ring".

    Returns:
        W / N times the sum of the losses of this rank's images, 0-d.
    """
    tensors = image, text, scale, bias
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return global_sigmoid_contrast(*tensors, name_of(group), how, gradients)[0]
