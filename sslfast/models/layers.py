"""The small layers of Vision Transformers, by timm's names and with its state_dict names."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from sslfast._suggest import did_you_mean
from sslfast.models.packing import Packing

EPS = 1e-6  # of every layer norm, as in timm
Layer = Callable[..., nn.Module]


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate a tensor of any shape, element by element."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Linear, activation, linear, with dropout after both.

    Args:
        in_features: D.
        hidden_features: width of the first linear layer.
        act_layer: makes the activation; None: a GELU, in the gated ones a SiLU.
        norm_layer: makes a norm before the second linear layer; None: none.
        bias: of both linear layers.
        drop: dropout.
    """

    activation: ClassVar[type[nn.Module]] = nn.GELU

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: Layer | None = None,
        norm_layer: Layer | None = None,
        bias: bool = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = self.first(in_features, hidden_features, bias)
        self.act = (act_layer or self.activation)()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm_layer(hidden) if norm_layer else nn.Identity()
        self.fc2 = nn.Linear(hidden, in_features, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def first(self, dim: int, width: int, bias: bool) -> int:
        """Make the first linear layers, and say how wide the second one's input is."""
        self.fc1 = nn.Linear(dim, width, bias=bias)
        return width

    def hidden(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, hidden]."""
        return self.act(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.drop2(self.fc2(self.norm(self.drop1(self.hidden(x)))))


class SwiGLU(Mlp):
    """A gate beside the first linear layer: act(gate(x)) * linear(x), then linear (AIMv2).

    Shazeer 2020, arXiv:2002.05202. The arguments are those of Mlp.
    """

    activation = nn.SiLU

    def first(self, dim: int, width: int, bias: bool) -> int:
        """Gate and linear layer apart, each of the whole width."""
        self.fc1_g = nn.Linear(dim, width, bias=bias)
        self.fc1_x = nn.Linear(dim, width, bias=bias)
        return width

    def hidden(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, hidden]."""
        return self.act(self.fc1_g(x)) * self.fc1_x(x)


class PackedSwiGLU(Mlp):
    """SwiGLU with gate and linear layer in one, half of the width each (DINOv2's giant).

    The arguments are those of Mlp.

    Raises:
        ValueError: an odd hidden_features.
    """

    activation = nn.SiLU

    def first(self, dim: int, width: int, bias: bool) -> int:
        """Both in one layer."""
        if width % 2:
            raise ValueError(
                f"a packed SwiGLU needs an even hidden width, got {width}: change mlp_ratio or "
                "embed_dim"
            )
        self.fc1 = nn.Linear(dim, width, bias=bias)
        return width // 2

    def hidden(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, hidden]."""
        gate, linear = self.fc1(x).chunk(2, -1)
        return self.act(gate) * linear


ACTIVATIONS: dict[str, Layer] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
NORMS: dict[str, Layer] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
MLPS: dict[str, Layer] = {"mlp": Mlp, "swiglu": SwiGLU, "swiglu_packed": PackedSwiGLU}


def named(keyword: str, layer: str | Layer, known: dict[str, Layer]) -> Layer:
    """The layer of a name; anything but a string is taken as it is.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(layer, str):
        return layer
    if layer not in known:
        raise ValueError(
            f"{keyword} must be one of {', '.join(known)}, or a class, got {layer!r}."
            f"{did_you_mean(layer, list(known))}"
        )
    return known[layer]


def norm_of(keyword: str, layer: str | Layer, eps: float) -> Layer:
    """What makes a norm of a width: by name with ``eps``, or as given."""
    found = named(keyword, layer, NORMS)
    return partial(found, eps=eps) if isinstance(layer, str) else found


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, arXiv:2103.17239, section 2)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


class DropPath(nn.Module):
    """Leave a residual branch out of some samples, and scale it in the others.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382).

    Args:
        rate: probability that a sample goes without the branch, while training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, ...] -> [B, ...], or packed tokens [S, D] -> [S, D]."""
        if not self.training or self.rate == 0:
            return x
        samples = len(x) if packing is None else sum(images for images, _ in packing.shapes)
        keep = (torch.rand(samples, device=x.device) >= self.rate) / (1 - self.rate)
        if packing is not None:
            return x * packing.per_token(keep).to(x.dtype)
        return x * keep.view(-1, *(1,) * (x.dim() - 1)).to(x.dtype)
