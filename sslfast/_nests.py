"""Nests of tensors: tuples, lists and mappings of them, as views and inputs come."""

import copy
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def map_tensors(
    nest: Any,
    function: Callable[[Tensor], Tensor],
    of_strings: Callable[[list[str]], Any] | None = None,
) -> Any:
    """Apply ``function`` to every tensor of a nest.

    Args:
        nest: tuples, also with names, lists, dicts, and whatever else torch.utils._pytree knows;
            mappings of another class, which stay what they are.
        function: of a tensor.
        of_strings: of a list of strings, one for each sample; None: they stay as they are.
    """

    def apply(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if _strings(leaf):
            return leaf if of_strings is None else of_strings(leaf)
        if isinstance(leaf, MutableMapping):
            return _with(leaf, {k: map_tensors(v, function, of_strings) for k, v in leaf.items()})
        return leaf

    return tree_map(apply, nest, is_leaf=_strings)


def join_tensors(nests: Sequence[Any]) -> Any:
    """Concatenate nests of the same form, tensors along the first dimension, lists of strings."""

    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, Tensor):
            return torch.cat(leaves)
        if _strings(first):
            return [string for leaf in leaves for string in leaf]
        if isinstance(first, MutableMapping):
            return _with(
                first, {key: join_tensors([leaf[key] for leaf in leaves]) for key in first}
            )
        return first

    return tree_map(join, *nests, is_leaf=_strings)


def _strings(nest: Any) -> bool:
    """Whether it is a list of strings: a string for each sample, as captions come."""
    return isinstance(nest, list) and bool(nest) and all(isinstance(x, str) for x in nest)


def _with(mapping: MutableMapping[Any, Any], values: dict[Any, Any]) -> MutableMapping[Any, Any]:
    """A mapping of the same class with these values."""
    mapping = copy.copy(mapping)
    mapping.update(values)
    return mapping
