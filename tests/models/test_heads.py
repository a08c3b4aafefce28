"""Heads: the layers of each published configuration, and their forward pass."""

import pytest
import torch
from torch import nn

from sslfast.models import ProjectionHead


def layers_of(head):
    """The head as text: "16>32" a linear layer, "+b" with bias, "bn", "bn-" without affine."""
    words = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            bias = "" if layer.bias is None else "+b"
            words.append(f"{layer.in_features}>{layer.out_features}{bias}")
        elif isinstance(layer, nn.BatchNorm1d):
            words.append("bn" if layer.affine else "bn-")
        else:
            words.append(type(layer).__name__)
    return " ".join(words)


CONFIGURATIONS = {
    "simclr": (
        ProjectionHead(8, [8], 4, last_batch_norm=True),
        "8>8 bn ReLU 8>4 bn",
    ),
    "mocov2": (ProjectionHead(8, [16], 4, batch_norm=False), "8>16+b ReLU 16>4+b"),
    "mocov3": (
        ProjectionHead(8, [16], 4, last_batch_norm=True, last_affine=False),
        "8>16 bn ReLU 16>4 bn-",
    ),
    "byol": (ProjectionHead(8, [16], 4, last_bias=False), "8>16 bn ReLU 16>4"),
    "default": (ProjectionHead(8, [16], 4), "8>16 bn ReLU 16>4+b"),
    "simsiam": (
        ProjectionHead(8, [8, 8], 8, last_batch_norm=True, last_affine=False),
        "8>8 bn ReLU 8>8 bn ReLU 8>8 bn-",
    ),
    "barlow_twins": (
        ProjectionHead(8, [16, 16], 16, last_bias=False),
        "8>16 bn ReLU 16>16 bn ReLU 16>16",
    ),
    "vicreg": (
        ProjectionHead(8, [16, 16], 16, bias=True, last_bias=False),
        "8>16+b bn ReLU 16>16+b bn ReLU 16>16",
    ),
    "linear": (ProjectionHead(8, [], 4), "8>4+b"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_layers_of_published_heads(name):
    head, expected = CONFIGURATIONS[name]
    assert layers_of(head) == expected
    assert head(torch.randn(5, 8)).shape == (5, head.out_dim)


def test_forward_is_linear_norm_relu_linear():
    torch.manual_seed(0)
    head = ProjectionHead(6, [10], 3).double()
    x = torch.randn(7, 6).double()
    hidden = x @ head[0].weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    expected = hidden.relu() @ head[3].weight.T + head[3].bias
    torch.testing.assert_close(head(x), expected, rtol=1e-9, atol=1e-9)


def test_compiles_in_one_graph_and_trains_in_bf16():
    head = ProjectionHead(8, [16], 4, last_batch_norm=True)
    x = torch.randn(6, 8)
    compiled = torch.compile(head.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))
    with torch.autocast("cpu", torch.bfloat16):
        head.train()(x).float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    torch.compiler.reset()


@pytest.mark.parametrize("widths", [(0, [4], 4), (4, [0], 4), (4, [4], -1)])
def test_widths_must_be_positive(widths):
    with pytest.raises(ValueError, match="at least 1"):
        ProjectionHead(*widths)
