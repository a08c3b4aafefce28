// Selection of patches.
#include "bind.h"

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "random_patch_mask_cpu",
        [](Address sample_ids, std::int64_t batch, std::int64_t step, std::uint64_t seed,
           std::int64_t stream, std::int64_t length, std::int64_t keep, Address ids_keep,
           Address ids_restore, Address mask, int threads) {
            sslfast::cpu::random_patch_mask(
                pointer<const std::int64_t>(sample_ids), batch, step, seed, stream, length, keep,
                pointer<std::int64_t>(ids_keep), pointer<std::int64_t>(ids_restore),
                pointer<bool>(mask), threads);
        },
        Release());
    module.def(
        "smallest_keys_cpu",
        [](Address keys, Address counts, std::int64_t batch, std::int64_t length, int key_bits,
           Address chosen, int threads) {
            sslfast::cpu::smallest_keys(pointer<const std::int64_t>(keys),
                                        pointer<const std::int64_t>(counts), batch, length,
                                        key_bits, pointer<bool>(chosen), threads);
        },
        Release());
    module.def(
        "compact_mask_cpu",
        [](Address mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
           Address ids_keep, Address ids_restore, int threads) {
            sslfast::cpu::compact_mask(pointer<const bool>(mask), batch, length, keep,
                                       pointer<std::int64_t>(ids_keep),
                                       pointer<std::int64_t>(ids_restore), threads);
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    module.def(
        "random_patch_mask_cuda",
        [](Address sample_ids, std::int64_t batch, Address step, std::uint64_t seed,
           std::int64_t stream_number, std::int64_t length, std::int64_t keep, Address ids_keep,
           Address ids_restore, Address mask, Address stream) {
            sslfast::cuda::random_patch_mask(
                pointer<const std::int64_t>(sample_ids), batch, pointer<const std::int64_t>(step),
                seed, stream_number, length, keep, pointer<std::int64_t>(ids_keep),
                pointer<std::int64_t>(ids_restore), pointer<bool>(mask), pointer<void>(stream));
        },
        Release());
    module.def(
        "smallest_keys_cuda",
        [](Address keys, Address counts, std::int64_t batch, std::int64_t length, int key_bits,
           Address chosen, Address stream) {
            sslfast::cuda::smallest_keys(pointer<const std::int64_t>(keys),
                                         pointer<const std::int64_t>(counts), batch, length,
                                         key_bits, pointer<bool>(chosen), pointer<void>(stream));
        },
        Release());
    module.def(
        "compact_mask_cuda",
        [](Address mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
           Address ids_keep, Address ids_restore, Address stream) {
            sslfast::cuda::compact_mask(pointer<const bool>(mask), batch, length, keep,
                                        pointer<std::int64_t>(ids_keep),
                                        pointer<std::int64_t>(ids_restore), pointer<void>(stream));
        },
        Release());
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
