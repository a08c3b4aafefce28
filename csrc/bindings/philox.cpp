// Philox 4x32-10.
#include "bind.h"

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "philox_random_bits_cpu",
        [](Address sample_ids, std::int64_t batch, std::int64_t step, std::uint64_t seed,
           std::int64_t stream, std::int64_t count, Address out, int threads) {
            sslfast::cpu::philox_random_bits(pointer<const std::int64_t>(sample_ids), batch, step,
                                             seed, stream, count, pointer<std::int64_t>(out),
                                             threads);
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    module.def(
        "philox_random_bits_cuda",
        [](Address sample_ids, std::int64_t batch, Address step, std::uint64_t seed,
           std::int64_t stream_number, std::int64_t count, Address out, Address stream) {
            sslfast::cuda::philox_random_bits(
                pointer<const std::int64_t>(sample_ids), batch, pointer<const std::int64_t>(step),
                seed, stream_number, count, pointer<std::int64_t>(out), pointer<void>(stream));
        },
        Release());
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
