"""What the matrix kernels share: which tiles need masks, who takes which, how they are read.

Positives and left-out elements lie on at most three diagonals, so only the column tiles that a
diagonal crosses, and a last one that is not full, need masks. A kernel visits these first, in a
loop of their own, so that its main loop has neither mask nor branch.
"""

# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-3.4028234e38)

GROUP = tl.constexpr(16)

# Never constants of a compilation: a last batch of another size must not compile again.
SIZES = ["M", "N", "length", "shift", "row_base", "column_base", "self_length"]


@triton.jit
def on_diagonal(i, diagonal):
    """Column of a diagonal (first row, first column, length) in each row, or -1."""
    a = i - diagonal[0]
    return tl.where((a >= 0) & (a < diagonal[2]), diagonal[1] + a, -1)


@triton.jit
def crossed(i_row, diagonal, done, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Range of the column tiles, from tile ``done`` on, that a diagonal crosses in a row block."""
    first = tl.maximum(i_row - diagonal[0], 0)
    last = tl.minimum(i_row - diagonal[0] + BLOCK_M, diagonal[2])
    begin = tl.maximum((diagonal[1] + first) // BLOCK_N, done)
    end = tl.maximum(tl.cdiv(diagonal[1] + last, BLOCK_N), begin)
    return tl.where(first < last, begin, done), tl.where(first < last, end, done)


@triton.jit
def masked_tiles(i_row, N, wrapped, itself, straight, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Four ascending, disjoint ranges of tiles that need masks, and how many tiles they hold.

    In any row the wrapped positive stands left of the row itself, and the other one right of it.
    """
    b0, e0 = crossed(i_row, wrapped, 0, BLOCK_M, BLOCK_N)
    b1, e1 = crossed(i_row, itself, e0, BLOCK_M, BLOCK_N)
    b2, e2 = crossed(i_row, straight, e1, BLOCK_M, BLOCK_N)
    b3 = tl.maximum(N // BLOCK_N, e2)
    e3 = tl.maximum(tl.cdiv(N, BLOCK_N), e2)
    return (b0, e0, b1, e1, b2, e2, b3, e3), (e0 - b0) + (e1 - b1) + (e2 - b2) + (e3 - b3)


@triton.jit
def nth_tile(n, ranges, INSIDE: tl.constexpr):
    """The n-th tile inside the ranges, or outside of them."""
    if INSIDE:
        n += ranges[0]
        n += tl.where(n >= ranges[1], ranges[2] - ranges[1], 0)
        n += tl.where(n >= ranges[3], ranges[4] - ranges[3], 0)
        n += tl.where(n >= ranges[5], ranges[6] - ranges[5], 0)
    else:
        n += tl.where(n >= ranges[0], ranges[1] - ranges[0], 0)
        n += tl.where(n >= ranges[2], ranges[3] - ranges[2], 0)
        n += tl.where(n >= ranges[4], ranges[5] - ranges[4], 0)
        n += tl.where(n >= ranges[6], ranges[7] - ranges[6], 0)
    return n


@triton.jit
def share(count, i_part, parts):
    """Bounds of one of ``parts`` shares of range(count), which differ by one at most."""
    each, more = count // parts, count % parts
    first = i_part * each + tl.minimum(i_part, more)
    return first, first + each + tl.where(i_part < more, 1, 0)


@triton.jit
def load_tile(
    p, i_first, count, k_first, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    FULL: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """BLOCK rows by BLOCK_D features of a contiguous [count, D] matrix, 0 outside."""
    i = tl.arange(0, BLOCK)[:, None]
    k = k_first + tl.arange(0, BLOCK_D)[None, :]
    p += tl.cast(i_first, tl.int64) * D + i * D + k
    if not FULL:
        b = tl.load(p, mask=(i < count - i_first) & (k < D), other=0)
    elif D % BLOCK_D != 0:
        b = tl.load(p, mask=k < D, other=0)
    else:
        b = tl.load(p)
    return b.to(OPERAND)


@triton.jit
def chunked_products(
    p_x, p_y, i_row, i_column, M, N, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, FULL: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of a block of rows and one of columns, BLOCK_D features at a time."""
    b_s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, D, BLOCK_D):
        b_x = load_tile(p_x, i_row, M, k, D, BLOCK_M, BLOCK_D, False, OPERAND)
        b_y = load_tile(p_y, i_column, N, k, D, BLOCK_N, BLOCK_D, FULL, OPERAND)
        b_s = tl.dot(b_x, tl.trans(b_y), b_s, input_precision=PRECISION)
    return b_s


@triton.jit
def nth_block(n, row_blocks, column_blocks):
    """Block (row, column) of the n-th program: GROUP rows of blocks, column by column.

    Grouped for reuse in L2, which has to hold the rows of a group and a few columns at a time.
    """
    group = n // (GROUP * column_blocks)
    rows = tl.minimum(row_blocks - group * GROUP, GROUP)
    n -= group * GROUP * column_blocks
    return group * GROUP + n % rows, n // rows


@triton.jit
def touches(i_row, i_column, diagonal, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a diagonal (first row, first column, length) has elements in a tile."""
    first = tl.maximum(tl.maximum(i_row - diagonal[0], i_column - diagonal[1]), 0)
    last = tl.minimum(i_row - diagonal[0] + BLOCK_M, i_column - diagonal[1] + BLOCK_N)
    return first < tl.minimum(last, diagonal[2])


@triton.jit
def block_memory(p, i, j, height, width):
    """Pointers to elements (i, j) of a block in memory, and which of them are there.

    Its rows lie a multiple of 64 elements apart. The padding is there too, so that vectors are
    full; nobody reads what it holds.
    """
    step = tl.cdiv(width, 64) * 64
    p += i.to(tl.int64)[:, None] * step + j[None, :]
    return p, (i < height)[:, None] & (j < step)[None, :]


@triton.jit
def add_products(
    b_s, p_x, p_y, i, j, BEGIN: tl.constexpr, END: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """b_s and the inner products of features BEGIN to END, of rows i of X and rows j of Y."""
    k = BEGIN + tl.arange(0, BLOCK_D)
    p_x += i.to(tl.int64)[:, None] * D + k[None, :]
    p_y += j.to(tl.int64)[None, :] * D + k[:, None]
    for k_first in tl.range(0, END - BEGIN, BLOCK_D):
        if (END - BEGIN) % BLOCK_D == 0:
            b_x, b_y = tl.load(p_x), tl.load(p_y)
        else:
            m = k_first + k < END
            b_x = tl.load(p_x, mask=m[None, :], other=0)
            b_y = tl.load(p_y, mask=m[:, None], other=0)
        b_s = tl.dot(b_x.to(OPERAND), b_y.to(OPERAND), b_s)
        p_x += BLOCK_D
        p_y += BLOCK_D
    return b_s


@triton.jit
def block_logits(
    p_x, p_y, p_logits, i_row, i_column, i_first, j_first, M, N, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Inner products of BLOCK_M rows of X from i_first + i_row on with BLOCK_N rows of Y.

    Formed here; or, where ``p_logits`` is not None, from memory that begins at (i_first, j_first).
    Rows from M on stand for some before M, columns from N on too.
    """
    i, j = i_row + tl.arange(0, BLOCK_M), i_column + tl.arange(0, BLOCK_N)
    if p_logits is not None:
        p_logits, m = block_memory(p_logits, i, j, M - i_first, N - j_first)
        return tl.load(p_logits, mask=m, other=0)
    else:  # noqa: RET505 - Triton takes one branch only
        i, j = tl.minimum(i_first + i, M - 1), tl.minimum(j_first + j, N - 1)
        b_s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        return add_products(b_s, p_x, p_y, i, j, 0, D, D, BLOCK_D, OPERAND)


@triton.jit
def halves(b, BLOCK_M: tl.constexpr, HALF: tl.constexpr):
    """The left and the right half of a tile: one at a time takes fewer registers."""
    return tl.split(tl.permute(tl.reshape(b, (BLOCK_M, 2, HALF)), (0, 2, 1)))
