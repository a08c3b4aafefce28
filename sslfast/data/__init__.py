"""Data: where images and videos come from, what is done to them, and how they arrive in batches."""

from .batch import Batch
from .builtin_sets import builtin
from .loader import Loader, make_loader
from .recipes import Recipe, View, recipe
from .sources import ImageDataset, VideoDataset, open_dataset

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
