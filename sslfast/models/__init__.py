"""Encoders and heads, by class or by name."""

from sslfast.models.convnet import convnet_small
from sslfast.models.heads import ProjectionHead
from sslfast.models.registry import create, names
from sslfast.models.resnet import resnet18, resnet50

__all__ = ["ProjectionHead", "convnet_small", "create", "names", "resnet18", "resnet50"]
