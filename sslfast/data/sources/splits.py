"""Which folder of a data set is the training split, and which are for evaluation."""

import logging
from pathlib import Path

from sslfast.data.sources.walk import find_files, sub_folders

logger = logging.getLogger("sslfast")

# Names of a split's folder, in any case: those of Hugging Face's datasets.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "val": ("val", "valid", "validation", "dev"),
}
# Which of them serves for which, the first that is there.
SERVES = {"train": ("train",), "test": ("test", "val"), "val": ("val", "test")}


def split_folders(root: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    """The folder of each split, by "train", "test" and "val"; none where there are no splits.

    Args:
        root: of the data set.
        extensions: of files that make any other folder count.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is a file, or the whole machine; several folders for a split, or files beside
            the splits.
    """
    if not root.exists():
        raise FileNotFoundError(
            f"no such folder: {root}. Give a folder of images or videos, or builtin:NAME for a "
            "built-in set"
        )
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds the files")
    if root.resolve() == Path("/"):
        raise ValueError(f"{root} is the whole machine; give the folder that holds the files")
    names = sub_folders(root)
    named = {kind: [n for n in names if n.lower() in known] for kind, known in _SPLITS.items()}
    named = {kind: folders for kind, folders in named.items() if folders}
    if not named:
        return {}
    together = ", ".join(name for folders in named.values() for name in folders)
    others = set(names).difference(*named.values())
    full = sorted(n for n in others if find_files(root / n, extensions).files)
    if "train" not in named or (len(named) == 1 and full):
        if len(names) > 1:
            logger.warning(
                "%s: taken for classes, not for splits: %s (splits are a folder 'train' and a "
                "folder 'val' or 'test')",
                root,
                together,
            )
        return {}
    for kind, folders in named.items():
        if len(folders) > 1:
            raise ValueError(
                f"{root} has {len(folders)} '{kind}' splits: {', '.join(folders)}. Leave one, or "
                "give one of them"
            )
    if full:
        raise ValueError(
            f"{root} holds the splits {together} and files beside them, in "
            f"{', '.join(full)}: move these elsewhere, or give a folder of links to what to use"
        )
    return {kind: root / folders[0] for kind, folders in named.items()}
