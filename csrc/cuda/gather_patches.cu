// Rows of tokens by index (kernels/gather_patches), as bytes: any dtype. One warp a row, with
// vectorised accesses of 16 bytes where alignment allows it: 2 K D elements of memory traffic a
// sample and 8 bytes a row.
#include <sslfast/cuda.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sslfast::cuda {
namespace {

template <typename Word>
__global__ void gather_kernel(const Word* __restrict__ tokens, const std::int64_t* __restrict__ ids,
                              std::int64_t rows, std::int64_t length, std::int64_t keep,
                              std::int64_t row_words, Word* __restrict__ out) {
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.y;
    for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
         row < rows; row += stride) {
        const Word* from = tokens + (row / keep * length + ids[row]) * row_words;
        for (std::int64_t i = threadIdx.x; i < row_words; i += 32)
            out[row * row_words + i] = from[i];
    }
}

template <typename Word>
void launch(const char* tokens, const std::int64_t* ids, std::int64_t rows, std::int64_t length,
            std::int64_t keep, std::int64_t row_bytes, char* out, void* stream) {
    constexpr int rows_a_block = 8;
    const auto grid = static_cast<unsigned>(
        std::min<std::int64_t>((rows + rows_a_block - 1) / rows_a_block, 1 << 20));
    gather_kernel<<<grid, dim3(32, rows_a_block), 0, static_cast<cudaStream_t>(stream)>>>(
        reinterpret_cast<const Word*>(tokens), ids, rows, length, keep,
        row_bytes / static_cast<std::int64_t>(sizeof(Word)), reinterpret_cast<Word*>(out));
}

}  // namespace

void gather_rows(const char* tokens, const std::int64_t* ids, std::int64_t batch,
                 std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                 void* stream) {
    const std::int64_t rows = batch * keep;
    if (rows == 0 || row_bytes == 0) return;
    const auto address = reinterpret_cast<std::uintptr_t>(tokens) |
                         reinterpret_cast<std::uintptr_t>(out) |
                         static_cast<std::uintptr_t>(row_bytes);
    if (address % sizeof(uint4) == 0)
        launch<uint4>(tokens, ids, rows, length, keep, row_bytes, out, stream);
    else
        launch<std::uint16_t>(tokens, ids, rows, length, keep, row_bytes, out, stream);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error("gather_rows (batch " + std::to_string(batch) + ", keep " +
                                 std::to_string(keep) + "): " + cudaGetErrorString(error));
}

}  // namespace sslfast::cuda
