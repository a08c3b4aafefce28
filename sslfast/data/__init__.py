"""Data: where images and videos come from, what is done to them, and how they arrive in batches."""

from sslfast.data.batch import Batch
from sslfast.data.builtin_sets import builtin
from sslfast.data.loader import Loader, make_loader
from sslfast.data.recipes import Recipe, View, recipe
from sslfast.data.sources import ImageDataset, VideoDataset, open_dataset

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
