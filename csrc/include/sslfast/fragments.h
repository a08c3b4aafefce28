// How a warp holds matrices for the tensor cores of sm_80 (PTX ISA, "mma.m16n8k16", "ldmatrix"),
// and their layout in shared memory.
//
// Of a 16 x 8 accumulator, lane l = 4 g + t holds c[0..1]: row g, columns 2t, 2t + 1, and c[2..3]:
// row g + 8, the same columns. In 32-bit words, two 16-bit or one 32-bit element each, the operands
// of one instruction are a [16 rows, 8 words] and b [8 columns, 8 words]:
//     a[0]: row g, word t        a[1]: row g + 8, word t        b[0]: column g, word t
//     a[2]: row g, word t + 4    a[3]: row g + 8, word t + 4    b[1]: column g, word t + 4
// so 16 bytes of a row, four words, are what ldmatrix moves for eight rows at a time: lanes
// 8 k ... 8 k + 7 give the addresses of the rows of matrix k, and lane l gets word t of row g of
// each of the four matrices; transposed, elements (2t, g) and (2t + 1, g) of 8 x 8 16-bit ones.
//
// A Machine is what a kernel's code runs on: csrc/cuda/machine.h for a GPU, and for tests an
// emulation in plain C++. Shared memory is addressed by byte offsets from its beginning.
#pragma once

#include <cstdint>

#include <sslfast/host_device.h>

namespace sslfast {

constexpr int warp_size = 32;
constexpr int vector_bytes = 16;  // of one cp.async
constexpr int chunk_bytes = 128;  // of a row's features: a row of a swizzled block
constexpr int vectors_of_chunk = chunk_bytes / vector_bytes;
constexpr int step_bytes = 32;  // of a row's features, that one instruction multiplies

struct Fragment {
    std::uint32_t word[4];
};

// Element types of operands; weights of the second product are converted to them too.
struct Bf16 {
    static constexpr int bytes = 2;
};
struct Fp16 {
    static constexpr int bytes = 2;
};
struct Tf32 {  // float32, rounded to 10 bits of fraction
    static constexpr int bytes = 4;
};
struct Ieee32 {  // float32 by fused multiply-adds, without tensor cores
    static constexpr int bytes = 4;
};

// Swizzled offset of a 16-byte vector in a block of 128-byte rows: no bank conflicts between the
// same vector of eight rows, nor between the eight vectors of a row.
SSLFAST_HOST_DEVICE unsigned swizzled(int row, int vector) {
    return static_cast<unsigned>(row * chunk_bytes + ((vector ^ (row & 7)) * vector_bytes));
}

// swizzled(row, a ^ v) from block + swizzled(row, a), as blocks begin at multiples of 128 bytes:
// one register serves all vectors.
SSLFAST_HOST_DEVICE unsigned other_vector(unsigned at, int v) {
    return at ^ static_cast<unsigned>(v * vector_bytes);
}

// Row and vector whose address lane l gives to ldmatrix, relative to the first row and vector.
struct MatrixRow {
    int row, vector;
};

// For a [16 rows, 2 vectors]: rows 0-7 and 8-15 of the first vector, then of the second. Also for b
// of a transposed operand, where rows are what is summed over: two column tiles of one vector each.
SSLFAST_HOST_DEVICE MatrixRow matrix_row_a(int lane) { return {lane % 16, lane / 16}; }

// For b of two column tiles [8 columns, 2 vectors]: both vectors of the first, then of the second.
SSLFAST_HOST_DEVICE MatrixRow matrix_row_b(int lane) {
    return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

// Row (0-15) and column (0-7) of accumulator element e (0-3) of a lane.
SSLFAST_HOST_DEVICE int accumulator_row(int lane, int e) { return lane / 4 + e / 2 * 8; }
SSLFAST_HOST_DEVICE int accumulator_column(int lane, int e) { return lane % 4 * 2 + e % 2; }

}  // namespace sslfast
