"""Data: where images and videos come from, what is done to them, and how they arrive in batches."""

from sslfast.data.batch import Batch
from sslfast.data.loader import Loader, make_loader
from sslfast.data.sources.builtin import builtin
from sslfast.data.sources.images import ImageDataset
from sslfast.data.sources.opening import open_dataset
from sslfast.data.sources.source import Source
from sslfast.data.sources.videos import VideoDataset
from sslfast.data.views.recipes import recipe
from sslfast.data.views.view import Group, Recipe, View

__all__ = [
    "Batch",
    "Group",
    "ImageDataset",
    "Loader",
    "Recipe",
    "Source",
    "VideoDataset",
    "View",
    "builtin",
    "make_loader",
    "open_dataset",
    "recipe",
]
