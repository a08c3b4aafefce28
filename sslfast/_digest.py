"""SHA-256 of tensors: whose weights these are, and whether a file is as it was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256, in hexadecimal, of a text and of tensors: names, types, shapes and bytes."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The digest of a file: of its description, plain values, and of its tensors."""
    plain = json.loads(json.dumps(description))  # as it is read: no tuples
    return digest(tensors, json.dumps(plain, sort_keys=True))
