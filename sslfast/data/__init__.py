"""Data: where images and videos come from, what is done to them, and how they arrive in batches."""

from sslfast.data.batch import Batch
from sslfast.data.loader import Loader, make_loader
from sslfast.data.sources.builtin import builtin
from sslfast.data.sources.folder import ImageDataset, VideoDataset, open_dataset
from sslfast.data.views.recipes import Recipe, View, recipe

__all__ = [
    "Batch",
    "ImageDataset",
    "Loader",
    "Recipe",
    "VideoDataset",
    "View",
    "builtin",
    "make_loader",
    "open_dataset",
    "recipe",
]
