// Visible patches of images.
#include "bind.h"

#include <array>

#include <pybind11/stl.h>

#include <sslfast/cpu.h>

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "cut_patches_cpu",
        // grid: channels, frames, height, width, then a patch's frames, height, width
        [](Address images, Address ids, std::int64_t batch, std::int64_t keep,
           std::array<std::int64_t, 7> grid, std::int64_t item_bytes, Address out, int threads) {
            const auto [channels, frames, height, width, t, h, w] = grid;
            return sslfast::cpu::cut_patches(pointer<const char>(images),
                                             pointer<const std::int64_t>(ids), batch, keep,
                                             {channels, frames, height, width, t, h, w}, item_bytes,
                                             pointer<char>(out), threads);
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
