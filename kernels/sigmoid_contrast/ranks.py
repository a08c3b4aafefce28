"""The sigmoid loss over the pairs of all ranks; distributed.py says what a rank returns."""

from typing import Any

import torch
from torch import Tensor

from sslfast.kernels.exchange import Exchange, Group, name_of
from sslfast.kernels.library import NAMESPACE, refuse_double_backward, times
from sslfast.kernels.sigmoid_contrast.op import sigmoid_contrast, weighted_sigmoid_contrast


@torch.library.custom_op(f"{NAMESPACE}::global_sigmoid_contrast", mutates_args=())
def global_sigmoid_contrast(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    group: str,
    how: str,
    gradients: bool,
    text_gradient: bool,
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
        text_gradient: that of the texts too.

    Returns:
        The loss, 0-d, and the gradients of image and text (empty where not asked for), scale and
        bias, all in the accumulation dtype.
    """
    exchange = Exchange.of(image, group, how)
    factor = exchange.factor
    weight = torch.full((len(image),), factor, dtype=scale.dtype, device=image.device)
    total, d_scale, d_bias = (torch.zeros_like(scale) for _ in range(3))
    d_image = scale.new_zeros(image.shape if gradients else (0,))
    d_text = scale.new_zeros(text.shape if text_gradient else (0,))
    travelling = (text, image) if text_gradient else (text,)
    for own, (texts, *images) in exchange.blocks(*travelling):
        if not gradients:
            total += factor * sigmoid_contrast(image, texts, scale, bias, own).sum()
            continue
        loss, d_rows, _, d_s, d_b = weighted_sigmoid_contrast(
            *(image, texts, scale, bias, weight), column_base=own, columns_gradient=False
        )
        for sum_, part in ((total, loss), (d_scale, d_s), (d_bias, d_b), (d_image, d_rows)):
            sum_ += part
        if text_gradient:
            d_text += weighted_sigmoid_contrast(
                *(text, *images, scale, bias, weight), column_base=own, columns_gradient=False
            )[1]
    return total, d_image, d_text, d_scale, d_bias


@global_sigmoid_contrast.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    group: str,
    how: str,
    gradients: bool,
    text_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_image = scale.new_empty(image.shape if gradients else (0,))
    d_text = scale.new_empty(text.shape if text_gradient else (0,))
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
        return (None,) * 8
    d_image, d_text, d_scale, d_bias = ctx.saved_tensors
    d_text = times(d_text, upstream, ctx.dtype) if ctx.needs_input_grad[1] else None
    d_image = times(d_image, upstream, ctx.dtype)
    return d_image, d_text, upstream * d_scale, upstream * d_bias, None, None, None, None


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
        W / N times the sum of the losses of this rank's images, 0-d; of its texts, where only they
        need a gradient.
    """
    if text.requires_grad and not image.requires_grad:  # every pair counts the same from both ends
        image, text = text, image
    tensors = image, text, scale, bias
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    text_gradient = gradients and text.requires_grad
    return global_sigmoid_contrast(*tensors, name_of(group), how, gradients, text_gradient)[0]
