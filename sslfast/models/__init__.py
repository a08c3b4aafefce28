"""Encoders and heads, by class or by name."""

from sslfast.models.convnet import convnet_small
from sslfast.models.decoders import Decoder, Predictor
from sslfast.models.heads import ProjectionHead
from sslfast.models.registry import create, names
from sslfast.models.resnet import resnet18, resnet50
from sslfast.models.vit import VisionTransformer
from sslfast.models.vit_sizes import (
    vit,
    vit_base,
    vit_huge,
    vit_large,
    vit_micro,
    vit_small,
    vit_tiny,
)

__all__ = [
    "Decoder",
    "Predictor",
    "ProjectionHead",
    "VisionTransformer",
    "convnet_small",
    "create",
    "names",
    "resnet18",
    "resnet50",
    "vit",
    "vit_base",
    "vit_huge",
    "vit_large",
    "vit_micro",
    "vit_small",
    "vit_tiny",
]
