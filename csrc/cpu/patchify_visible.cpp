// Cuts the visible patches out of images (kernels/patchify_visible), as bytes: any dtype.
#include <sslfast/cpu.h>

#include <atomic>
#include <cstring>

#include "huge_pages.h"

namespace sslfast::cpu {

bool cut_patches(const char* images, const std::int64_t* ids, std::int64_t batch, std::int64_t keep,
                 const PatchGrid& grid, std::int64_t item_bytes, char* out, int threads) {
    const std::int64_t layers = grid.frames / grid.patch_frames;
    const std::int64_t rows = grid.height / grid.patch_height;
    const std::int64_t columns = grid.width / grid.patch_width;
    const std::int64_t line_bytes = grid.patch_width * item_bytes;
    const std::int64_t patch_bytes =
        grid.channels * grid.patch_frames * grid.patch_height * line_bytes;
    advise_huge_result(out, batch * keep * patch_bytes);
    std::atomic<bool> inside{true};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < batch * keep; ++row) {
        const std::int64_t id = ids[row], sample = row / keep;
        if (id < 0 || id >= layers * rows * columns) {
            inside = false;
            continue;
        }
        const std::int64_t frame = id / (rows * columns) * grid.patch_frames;
        const std::int64_t top = id / columns % rows * grid.patch_height;
        const std::int64_t left = id % columns * grid.patch_width;
        char* to = out + row * patch_bytes;
        for (std::int64_t c = 0; c < grid.channels; ++c)
            for (std::int64_t t = 0; t < grid.patch_frames; ++t) {
                const std::int64_t plane = (sample * grid.channels + c) * grid.frames + frame + t;
                const std::int64_t first = (plane * grid.height + top) * grid.width + left;
                for (std::int64_t y = 0; y < grid.patch_height; ++y, to += line_bytes)
                    std::memcpy(to, images + (first + y * grid.width) * item_bytes, line_bytes);
            }
    }
    return inside;
}

}  // namespace sslfast::cpu
