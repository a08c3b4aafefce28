"""Encoders and heads, by class or by name."""

from sslfast.models.convnet import convnet_small
from sslfast.models.decoders import Decoder, Predictor
from sslfast.models.heads import ProjectionHead, PrototypeHead, VarianceHead
from sslfast.models.registry import create, names, register
from sslfast.models.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from sslfast.models.vision_transformer import VisionTransformer
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
    "PrototypeHead",
    "VarianceHead",
    "VisionTransformer",
    "convnet_small",
    "create",
    "names",
    "register",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "vit",
    "vit_base",
    "vit_huge",
    "vit_large",
    "vit_micro",
    "vit_small",
    "vit_tiny",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
