"""A tokenizer's file: safetensors, with the spec and a checksum as metadata."""

import json
from dataclasses import asdict
from pathlib import Path

from sslfast._digest import checksum
from sslfast._extras import require
from sslfast._versions import check_version
from sslfast.tokenizers.patch import PatchTokenizer, TokenizerSpec

SCHEMA_VERSION = 2  # 1 had no checksum
_KEY = "sslfast_tokenizer"
_CHECKSUM = "sha256"  # beside the spec
_HOW_TO = "make one with sslfast tokenizer fit --data IMAGES --out tokens.safetensors"


def tokenizer_bytes(tokenizer: PatchTokenizer) -> bytes:
    """The content of a tokenizer's file."""
    safetensors = require("safetensors.torch", extra="train", purpose="writing a tokenizer")
    tensors = {k: v.detach().cpu().contiguous() for k, v in tokenizer.state_dict().items()}
    spec = {"schema_version": SCHEMA_VERSION, **asdict(tokenizer.spec)}
    return safetensors.save(
        tensors, {_KEY: json.dumps({**spec, _CHECKSUM: checksum(spec, tensors)})}
    )


def as_tokenizer(given: Path | str | PatchTokenizer | None) -> PatchTokenizer:
    """A tokenizer that is given itself, or by its file.

    Raises:
        ValueError: nothing is given; and what ``load_tokenizer`` raises.
    """
    if given is None:
        raise ValueError(f"beit needs a tokenizer: {_HOW_TO} and set method_args.tokenizer to it")
    return given if isinstance(given, PatchTokenizer) else load_tokenizer(given)


def load_tokenizer(path: Path | str) -> PatchTokenizer:
    """Read a tokenizer that ``sslfast tokenizer fit`` wrote.

    Returns:
        The tokenizer in float32 on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ordinary file, is damaged, holds no tokenizer, or was written by a
            newer sslfast.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no tokenizer {path}: {_HOW_TO}")
    if not path.is_file():
        raise ValueError(
            f"{path} is no ordinary file, but a folder, a pipe or a device: copy the tokenizer "
            "into a file, and give that"
        )
    safetensors = require("safetensors", extra="train", purpose="reading a tokenizer")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no .safetensors file ({error})") from error
    if _KEY not in metadata:
        raise ValueError(
            f"{path} is no tokenizer: it was not written by sslfast tokenizer fit"
            + (" (it holds an encoder)" if "sslfast" in metadata else "")
        )
    try:
        spec = json.loads(metadata[_KEY])
        expected, version = spec.pop(_CHECKSUM, None), spec["schema_version"]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: its description cannot be read") from error
    check_version(str(path), version, SCHEMA_VERSION)
    if expected != checksum(spec, tensors) and (expected is not None or version > 1):
        raise ValueError(
            f"{path} is damaged: its checksum differs. Copy it anew, or fit the tokenizer again"
        )
    del spec["schema_version"]
    pairs = {name: tuple(spec[name]) for name in ("mean", "std")}
    tokenizer = PatchTokenizer(TokenizerSpec(**{**spec, **pairs}))
    own = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != found:
        wrong = sorted(name for name in {*own, *found} if own.get(name) != found.get(name))
        raise ValueError(
            f"{path} contradicts itself: its {', '.join(wrong)} are not those of a vocabulary of "
            f"{spec['vocab_size']} and patches of {spec['patch_size']}. Fit the tokenizer again"
        )
    tokenizer.load_state_dict(tensors)
    return tokenizer
