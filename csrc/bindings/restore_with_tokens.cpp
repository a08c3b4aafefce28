// Decoder input of a masked autoencoder.
#include "bind.h"

#include <sslfast/cpu.h>

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "restore_with_tokens_cpu",
        [](Address visible, Address token, Address ids_restore, Address positions,
           std::int64_t batch, std::int64_t length, std::int64_t keep, std::int64_t dim,
           Address out, int threads) {
            return sslfast::cpu::restore_with_tokens(
                pointer<const float>(visible), pointer<const float>(token),
                pointer<const std::int64_t>(ids_restore), pointer<const float>(positions), batch,
                length, keep, dim, pointer<float>(out), threads);
        },
        Release());
    module.def(
        "restore_with_tokens_backward_cpu",
        [](Address gradient, Address ids_restore, std::int64_t batch, std::int64_t length,
           std::int64_t keep, std::int64_t dim, Address d_visible, Address d_token, int threads) {
            sslfast::cpu::restore_with_tokens_backward(
                pointer<const float>(gradient), pointer<const std::int64_t>(ids_restore), batch,
                length, keep, dim, pointer<float>(d_visible), pointer<float>(d_token), threads);
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
