// The CUDA kernels of the similarity softmax, block after block on an emulated GPU, for
// tests/kernels/test_cuda_emulation.py: a C interface, called through ctypes.
#include <cstdio>
#include <cstring>

#include <sslfast/similarity_backward.h>
#include <sslfast/similarity_forward.h>
#include <sslfast/similarity_plan.h>

#include "machine.h"

namespace sslfast::emulation {
namespace {

struct Problem {
    std::int64_t element;  // 0 bfloat16, 1 float16, 2 TF32, 3 IEEE float32
    const char* x;
    const char* y;
    std::int64_t m, n, dim;
    const float* scale;
    std::int64_t length, shift, row_base, column_base, leave_out_self;
    std::int64_t processors, shared_bytes;  // of the GPU
    std::int64_t seed, eager_copies;
};

struct Statistics {
    const float *row_lse, *row_weight, *column_lse, *column_weight;
};

bool aligned(const char* data, std::int64_t row_bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

template <class E>
Similarity similarity(const Problem& p, const Plan& plan) {
    const auto matrix = [&](const char* data, std::int64_t rows) {
        return Matrix{data, static_cast<int>(rows), static_cast<int>(p.dim),
                      aligned(data, p.dim * E::bytes)};
    };
    const Matrix x = matrix(p.x, p.m), y = matrix(p.y, p.n);
    const Pairing pairing{p.length, p.shift, p.row_base, p.column_base, p.leave_out_self != 0};
    return {x, y, p.scale, pairing, plan.panels, plan.stages, plan.resident};
}

template <class E>
Plan plan(const Problem& p, bool backward) {
    return plan_similarity<E>(p.m, p.n, static_cast<int>(p.dim), backward,
                              {static_cast<int>(p.processors), static_cast<int>(p.shared_bytes)});
}

template <class E>
Options options(const Problem& p, const Statistics& s) {
    const auto floats = [](const float* data, std::int64_t count) {
        return Range{reinterpret_cast<const char*>(data),
                     data == nullptr ? 0 : static_cast<std::size_t>(count) * 4};
    };
    const auto bytes = [&](std::int64_t rows) {
        return static_cast<std::size_t>(rows * p.dim * E::bytes);
    };
    return {static_cast<std::uint32_t>(p.seed),
            p.eager_copies != 0,
            {{p.x, bytes(p.m)},
             {p.y, bytes(p.n)},
             floats(s.column_lse, p.n),
             floats(s.column_weight, p.n)}};
}

std::vector<float> workspace(std::int64_t floats) {
    return std::vector<float>(static_cast<std::size_t>(floats), NAN);
}

template <class T>
void run_grid(const Plan& plan, const Options& options, const std::function<void(Machine&)>& body) {
    Block block(T::threads, plan.shared_bytes, options);
    for (int x = plan.row_blocks - 1; x >= 0; --x)
        for (int y = 0; y < plan.gradient_panels; ++y)
            for (int z = 0; z < plan.splits; ++z) block.run(x, y, z, body);
}

template <class E>
void forward(const Problem& p, float* lse, float* positive) {
    using T = ForwardTile<E>;
    const Plan how = plan<E>(p, false);
    const Options how_run = options<E>(p, {});
    std::vector<float> parts = workspace(how.workspace(p.m, 2));
    const Similarity s = similarity<E>(p, how);
    const ForwardResults out{lse, positive, parts.data(), how.splits};
    run_grid<T>(how, how_run, [&](Machine& machine) { forward_block<T>(machine, s, out); });
    if (how.splits == 1) return;
    Block one(warp_size, 0, how_run);
    Machine machine(one, 0);
    for (std::int64_t i = 0; i < p.m; ++i) merge_forward(machine, i, p.m, out);
}

template <class E>
void backward(const Problem& p, const Statistics& g, float* u) {
    const Plan how = plan<E>(p, true);
    const Options how_run = options<E>(p, g);
    std::vector<float> parts = workspace(how.workspace(p.m, p.dim)), growth = workspace(2);
    const Similarity s = similarity<E>(p, how);
    const BackwardResults out{u, parts.data(), growth.data(), how.splits};
    if (std::is_same_v<E, Fp16> && g.column_lse != nullptr) {
        constexpr int threads = 128;
        Block block(threads, threads / warp_size * 4, how_run);
        block.run(0, 0, 0, [&](Machine& machine) {
            growth_block<threads>(machine, g.row_weight, s.x.rows, g.column_weight, s.y.rows,
                                  growth.data());
        });
    }
    const RowStatistics row{g.row_lse, g.row_weight};
    const ColumnStatistics column{g.column_lse, g.column_weight};
    if (how.wide)
        run_grid<WideTile<E>>(how, how_run, [&](Machine& machine) {
            backward_block<WideTile<E>>(machine, s, row, column, out);
        });
    else
        run_grid<NarrowTile<E>>(how, how_run, [&](Machine& machine) {
            backward_block<NarrowTile<E>>(machine, s, row, column, out);
        });
    for (std::int64_t i = 0; how.splits > 1 && i < p.m * p.dim; ++i)
        merge_backward(i, p.m * p.dim, out);
}

// Calls f(element) and returns 0, or writes what went wrong.
template <class F>
int guarded(const Problem& p, char* error, int size, F f) {
    try {
        switch (p.element) {
            case 0: f(Bf16{}); break;
            case 1: f(Fp16{}); break;
            case 2: f(Tf32{}); break;
            default: f(Ieee32{});
        }
        return 0;
    } catch (const std::exception& e) {
        std::snprintf(error, static_cast<std::size_t>(size), "%s", e.what());
        return 1;
    }
}

}  // namespace
}  // namespace sslfast::emulation

using namespace sslfast;
using namespace sslfast::emulation;

extern "C" {

int emulate_forward(const Problem* p, float* lse, float* positive, char* error, int size) {
    return guarded(*p, error, size, [&](auto e) { forward<decltype(e)>(*p, lse, positive); });
}

int emulate_backward(const Problem* p, const Statistics* g, float* u, char* error, int size) {
    return guarded(*p, error, size, [&](auto e) { backward<decltype(e)>(*p, *g, u); });
}

// wide, resident, panels, stages, splits, shared bytes, row blocks, gradient panels
int plan_of(const Problem* p, int backward, int* fields, char* error, int size) {
    return guarded(*p, error, size, [&](auto e) {
        const Plan how = plan<decltype(e)>(*p, backward != 0);
        const int values[] = {how.wide,   how.resident,     how.panels,     how.stages,
                              how.splits, how.shared_bytes, how.row_blocks, how.gradient_panels};
        std::copy(std::begin(values), std::end(values), fields);
    });
}

// Bits of elements, as the emulated tensor cores round them.
std::uint16_t bfloat16_bits(float value) { return element_bits(Bf16{}, value); }
std::uint16_t float16_bits(float value) { return element_bits(Fp16{}, value); }
float float16_value(std::uint16_t bits) { return element_value(Fp16{}, bits, 0); }

// Whether NamedColumns finds every named element of every tile, and positive_of and self_of agree.
int positive_of(const Problem* p, std::int64_t i) {
    const Pairing pairing{p->length, p->shift, p->row_base, p->column_base, p->leave_out_self != 0};
    return static_cast<int>(pairing.positive_of(i));
}
int self_of(const Problem* p, std::int64_t i) {
    const Pairing pairing{p->length, p->shift, p->row_base, p->column_base, p->leave_out_self != 0};
    return static_cast<int>(pairing.self_of(i));
}
int named_meets(const Problem* p, std::int64_t first_row, int rows, int begin, int end) {
    const Pairing pairing{p->length, p->shift, p->row_base, p->column_base, p->leave_out_self != 0};
    return NamedColumns(pairing, first_row, rows).meet(begin, end);
}
unsigned swizzled_offset(int row, int vector) { return swizzled(row, vector); }
}
