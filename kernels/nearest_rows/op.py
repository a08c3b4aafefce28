"""The column most similar to each row: schema, fake -> a backend. It has no gradient."""

import torch
from torch import Tensor

from sslfast.kernels import nearest_rows as kernels
from sslfast.kernels import registry
from sslfast.kernels.library import NAMESPACE

OP = "nearest_rows"


@torch.library.custom_op(f"{NAMESPACE}::nearest_rows", mutates_args=())
def nearest_rows(x: Tensor, y: Tensor, own: Tensor) -> Tensor:
    """The j that maximises <x_i, y_j> over j != own_i, for every row i.

    Args:
        x: [N, D], float16, bfloat16, float32 or float64.
        y: [M, D] of the same dtype and device, M at least 2.
        own: int64 [N], what each row is among y.

    Returns:
        int64 [N].
    """
    with torch.autocast(x.device.type, enabled=False):
        return registry.pick(OP, kernels.problem(x)).nearest(x, y, own)


@nearest_rows.register_fake
def _(x: Tensor, y: Tensor, own: Tensor) -> Tensor:
    return torch.empty_like(own)
