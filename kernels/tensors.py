"""Many tensors in one launch: the table of where they lie (csrc/include/sslfast/rows.h).

A row is a tensor, or a few that belong together and have the same elements in the same order:
eight words of 64 bits, six addresses, the number of elements, and types beside the group.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sslfast.kernels.extension import extension

ADDRESSES = 6
WORDS = 8
CHUNK = 16384  # elements that a block of threads takes at a time; csrc/include/sslfast/cuda.h
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CODES = {dtype: code for code, dtype in enumerate(TYPES)}
NONE = len(TYPES)  # the code of a tensor that is not there


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one shape and dense, with their elements in the same order."""
    if a.shape != b.shape:
        return False
    if a.is_contiguous():
        return b.is_contiguous()
    return a.stride() == b.stride() and is_dense(a)


@cache
def types_of(first: torch.dtype, second: torch.dtype | None) -> int:
    """The number that says of which dtypes a row is."""
    return 5 * CODES[first] + (NONE if second is None else CODES[second])


@cache
def dtypes_of(types: int) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtypes of a row: the inverse of ``types_of``."""
    first, second = divmod(types, 5)
    return TYPES[first], None if second == NONE else TYPES[second]


def dtypes(tensors: Sequence[Tensor | None]) -> list[torch.dtype | None]:
    """Their dtypes; None for None."""
    return [None if t is None else t.dtype for t in tensors]


@dataclass(frozen=True)
class Rows:
    """A table on the host.

    Attributes:
        words: eight a row.
        types: of all rows, each once.
    """

    words: "array[int]"
    types: tuple[int, ...]

    def __len__(self) -> int:
        """Rows, empty ones too."""
        return len(self.words) // WORDS

    @property
    def address(self) -> int:
        """Where the words lie."""
        return self.words.buffer_info()[0]


def plain_rows(
    columns: Sequence[Sequence[Tensor | None]], second: int, groups: Sequence[int] | None = None
) -> Rows | None:
    """The table of ordinary tensors that fit, in one walk in C++; None where any is unusual.

    What is not None needs no other check: real numbers on one device, and in every row the same
    shapes and layouts, and one dtype but in the column ``second``. See ``rows`` for the arguments.
    """
    if torch.compiler.is_compiling() or not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return None  # that is of PyTorch 2.10 and later
    module = extension()
    if module is None:
        return None
    words = array("q", bytes(8 * WORDS * len(columns[0])))
    lists = [column if type(column) is list else list(column) for column in columns]
    owners = None if groups is None else list(groups)
    address = words.buffer_info()[0]
    types = module.rows_of_tensors(address, lists, second, owners, Tensor, torch.nn.Parameter)
    return None if types < 0 else Rows(words, _bits(types))


@cache
def _bits(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(number.bit_length()) if number >> n & 1)


def rows(
    columns: Sequence[Sequence[Tensor | None]], second: int, groups: Sequence[int] | None = None
) -> Rows:
    """The table on the host, of non-empty rows or not.

    Args:
        columns: up to six lists of tensors of one length; the first has no None. Tensors of a row
            have the same layout (``same_layout``), except those with one element.
        second: the column whose dtype the kernel needs beside that of the first.
        groups: of each row.
    """
    plain = plain_rows(columns, second, groups)
    if plain is not None:
        return plain
    first, n = columns[0], len(columns[0])
    words = array("q", bytes(8 * WORDS * n))
    for c, column in enumerate(columns):
        addresses = [0 if t is None else t.data_ptr() for t in column]
        words[c::WORDS] = array("q", addresses)
    words[ADDRESSES::WORDS] = array("q", [0 if t is None else t.numel() for t in first])
    types = [types_of(a, b) for a, b in zip(dtypes(first), dtypes(columns[second]), strict=True)]
    words[ADDRESSES + 1 :: WORDS] = array(
        "q", [t | g << 32 for t, g in zip(types, groups, strict=True)] if groups else types
    )
    return Rows(words, tuple(sorted(set(types))))


@dataclass(frozen=True)
class Table:
    """A table on a GPU.

    Attributes:
        rows: int64 [rows, 8].
        chunks: int64 [chunks], row * 2^32 + number of the chunk of ``CHUNK`` elements in its row.
        types: of all rows, each once.
        aligned: whether every address is a multiple of 16.
    """

    rows: Tensor
    chunks: Tensor
    types: tuple[int, ...]
    aligned: bool


# By content, device and stream: memory goes back to the stream that it was taken on.
_tables: OrderedDict[tuple[bytes, torch.device, object], Table] = OrderedDict()
_captured: list[object] = []  # a CUDA graph reads at every replay what it read when captured
KEPT_TABLES = 64


def device_table(rows: Rows, like: Tensor) -> Table:
    """The table on the device of ``like``: copied there when anything in it has changed.

    It is looked up by its whole content, so that it can never be that of other tensors.
    """
    device = like.device
    cuda = device.type == "cuda"
    key = (rows.words.tobytes(), device, torch.cuda.current_stream(device) if cuda else None)
    table = _tables.get(key)
    capturing = cuda and torch.cuda.is_current_stream_capturing()
    if table is None and capturing:
        # Graphs are captured on a stream of their own, when all others have been waited for.
        table = next((t for k, t in _tables.items() if k[:2] == key[:2]), None)
    if table is None:
        table = _upload(rows, device)
    if capturing:
        _captured.append(table)
    else:
        _tables[key] = table
        _tables.move_to_end(key)
        if len(_tables) > KEPT_TABLES:
            _tables.popitem(last=False)
    return table


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    if device.type != "cuda":
        return host.to(device)
    host = host.pin_memory()
    there = host.to(device, non_blocking=True)
    if torch.cuda.is_current_stream_capturing():
        _captured.append((host, there))
    return there


def _upload(rows: Rows, device: torch.device) -> Table:
    table = torch.tensor(rows.words, dtype=torch.int64).view(-1, WORDS)
    counts = -(-table[:, ADDRESSES] // CHUNK)
    row = torch.arange(len(table)).repeat_interleave(counts)
    number = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    there = to_device(torch.cat((table.flatten(), row << 32 | number)), device)
    return Table(
        rows=there[: table.numel()].view(-1, WORDS),
        chunks=there[table.numel() :],
        types=rows.types,
        aligned=not (table[:, :ADDRESSES] % 16).any(),
    )
