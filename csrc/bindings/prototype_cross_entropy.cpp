// Cross-entropy between a teacher's and a student's softmax over prototypes.
#include "bind.h"

#include <sslfast/cpu.h>

#include <tuple>

namespace sslfast::bindings {

// A side's rows, views, weight, dim, scale and bias.
using Side = std::tuple<Address, std::int64_t, Address, int, double, Address>;

static cpu::PrototypeSide side(const Side& given) {
    const auto& [rows, views, weight, dim, scale, bias] = given;
    return {pointer<const float>(rows), views, pointer<const float>(weight), dim, scale,
            pointer<const float>(bias)};
}

static void add(py::module_& module) {
    module.def(
        "prototype_cross_entropy_cpu",
        [](const Side& student, const Side& teacher, std::int64_t samples, std::int64_t k,
           Address pairs, int threads, Address loss, Address entropy, Address usage,
           Address row_weight, Address d_rows, Address d_weight) {
            cpu::prototype_cross_entropy(
                {side(student), side(teacher), samples, k, pointer<const float>(pairs), threads},
                {pointer<float>(loss), pointer<float>(entropy), pointer<float>(usage),
                 pointer<const float>(row_weight), pointer<float>(d_rows),
                 pointer<float>(d_weight)});
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
