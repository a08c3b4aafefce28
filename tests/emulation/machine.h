// A CUDA block in plain C++: the Machine of csrc/include/sslfast/fragments.h for tests.
//
// Every thread is a coroutine that runs until it needs its warp (tensor cores, shuffles) or its
// block (barriers). Warps are scheduled in a random order, each as far as it can get, so that a
// missing barrier shows; asynchronous copies arrive when they are issued or when they are waited
// for, whichever the test chose, so that both a missing wait and a stage overwritten too early
// show. Shared memory begins as NaN; offsets, alignments and sources of copies are checked.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <sslfast/fragments.h>

#include "elements.h"

namespace sslfast::emulation {

inline void check(bool right, const char* what) {
    if (!right) throw std::runtime_error(what);
}

// Memory that kernels may copy from.
struct Range {
    const char* data;
    std::size_t bytes;
};

struct Options {
    std::uint32_t seed;
    bool eager_copies;
    std::vector<Range> global;
};

struct Exchange {
    Fragment in;
    std::uint32_t b[2];
    float c[4];
    Fragment out;
};

class Machine;

class Block {
  public:
    Block(int threads, int shared_bytes, const Options& options)
        : shared(shared_bytes, static_cast<char>(0xff)),
          options(options),
          threads_(threads),
          fibers_(threads),
          warps_(threads / warp_size),
          generator_(options.seed) {
        for (Fiber& fiber : fibers_) fiber.stack.reset(new char[stack_bytes]);
    }

    // Runs body(machine) in every thread of block (x, y, z).
    void run(int x, int y, int z, const std::function<void(Machine&)>& body);

    std::vector<char> shared;
    const Options& options;

  private:
    friend class Machine;
    static constexpr std::size_t stack_bytes = 256 << 10;

    struct Copy {
        unsigned to;
        const char* from;
        int bytes;
        bool inside;
    };
    struct Fiber {
        ucontext_t context;  // where it begins; then `resume`, which switches without a system call
        jmp_buf resume;
        bool begun;
        std::unique_ptr<char[]> stack;
        std::vector<std::vector<Copy>> groups;
        enum { ready, in_warp, in_block, done } state;
        int seen;  // arrivals of the kind it waits for
    };
    struct Warp {
        Exchange lane[warp_size];
        const void* operation;
        int arrived, generation;
    };

    static void enter(unsigned low, unsigned high, int thread);
    void thread_main(int thread);
    bool can_run(int thread) const {
        const Fiber& f = fibers_[thread];
        return f.state == Fiber::ready ||
               (f.state == Fiber::in_warp && warps_[thread / warp_size].generation != f.seen) ||
               (f.state == Fiber::in_block && generation_ != f.seen);
    }
    bool run_warp(int warp);
    __attribute__((noinline)) void yield(int thread) {
        if (_setjmp(fibers_[thread].resume) == 0) _longjmp(scheduler_, 1);
    }
    __attribute__((noinline)) void resume(Fiber& fiber) {
        if (_setjmp(scheduler_) != 0) return;
        if (fiber.begun) _longjmp(fiber.resume, 1);
        fiber.begun = true;
        setcontext(&fiber.context);
    }
    void land(const Copy& copy) {
        if (copy.inside)
            std::memcpy(&shared[copy.to], copy.from, copy.bytes);
        else
            std::memset(&shared[copy.to], 0, copy.bytes);
    }

    int threads_, arrived_ = 0, generation_ = 0;
    int x_ = 0, y_ = 0, z_ = 0;
    std::vector<Fiber> fibers_;
    std::vector<Warp> warps_;
    std::mt19937 generator_;
    jmp_buf scheduler_;
    const std::function<void(Machine&)>* body_ = nullptr;
    std::string error_;
};

class Machine {
  public:
    Machine(Block& block, int thread) : block_(block), thread_(thread) {}

    int thread() const { return thread_; }
    int lane() const { return thread_ % warp_size; }
    int warp() const { return thread_ / warp_size; }
    int block_x() const { return block_.x_; }
    int block_y() const { return block_.y_; }
    int block_z() const { return block_.z_; }

    float as_float(std::uint32_t word) const { return from_bits(word); }
    std::uint32_t as_word(float value) const { return to_bits(value); }
    float infinity() const { return std::numeric_limits<float>::infinity(); }
    float absolute(float a) const { return std::fabs(a); }
    float maximum(float a, float b) const { return std::fmax(a, b); }
    float exp2(float a) const { return std::exp2(a); }
    float log2(float a) const { return std::log2(a); }
    float multiply_add(float a, float b, float c) const { return std::fma(a, b, c); }

    Fragment load_vector(unsigned from) const {
        Fragment value;
        std::memcpy(&value, at(from, vector_bytes), vector_bytes);
        return value;
    }
    std::uint32_t load_word(unsigned from) const {
        std::uint32_t value;
        std::memcpy(&value, at(from, 4), 4);
        return value;
    }
    void store_vector(unsigned to, Fragment v) { std::memcpy(at(to, vector_bytes), &v, 16); }
    void store_word(unsigned to, std::uint32_t value) { std::memcpy(at(to, 4), &value, 4); }

    void copy_vector(unsigned to, const char* from, bool inside) {
        copy({to, from, vector_bytes, inside});
    }
    void copy_word(unsigned to, const float* from, bool inside) {
        copy({to, reinterpret_cast<const char*>(from), 4, inside});
    }
    void commit_copies() { fiber().groups.emplace_back(); }
    // The last group is the one that is still being filled.
    void wait_copies(int pending) {
        auto& groups = fiber().groups;
        while (static_cast<int>(groups.size()) > pending + 1) {
            for (const auto& c : groups.front()) block_.land(c);
            groups.erase(groups.begin());
        }
    }

    void synchronize() {
        if (++block_.arrived_ == block_.threads_) {
            block_.arrived_ = 0;
            ++block_.generation_;
            return;
        }
        wait(Block::Fiber::in_block, block_.generation_);
    }

    float shuffle(float value, int lane) {
        mine().in.word[0] = to_bits(value);
        together(&shuffle_key, [](Exchange*) {});
        const float got = from_bits(warp_state().lane[lane].in.word[0]);
        together(&shuffle_key, [](Exchange*) {});  // all have read
        return got;
    }
    float shuffle_xor(float value, int mask) { return shuffle(value, lane() ^ mask); }

    Fragment load_matrices(unsigned row) { return load_matrices(row, false); }
    Fragment load_matrices_transposed(unsigned row) { return load_matrices(row, true); }

    template <class E>
    Fragment operand(E, Fragment words) const {
        if constexpr (std::is_same_v<E, Tf32>)
            for (auto& word : words.word) word = rounded_to_tf32(word);
        return words;
    }
    template <class E>
    std::uint32_t pack(E, float low, float high) const {
        return element_bits(E{}, low) | static_cast<std::uint32_t>(element_bits(E{}, high)) << 16;
    }

    // c += a b, of the fragments that fragments.h describes.
    template <class E>
    void multiply(E, Fragment a, std::uint32_t b0, std::uint32_t b1, float (&c)[4]) {
        static const char key = 0;
        Exchange& my = mine();
        my.in = a;
        my.b[0] = b0;
        my.b[1] = b1;
        std::memcpy(my.c, c, sizeof(c));
        together(&key, multiply_warp<E>);
        std::memcpy(c, mine().c, sizeof(c));
    }

  private:
    static constexpr char shuffle_key = 0, load_key = 0, transpose_key = 0;

    Block::Fiber& fiber() { return block_.fibers_[thread_]; }
    Block::Warp& warp_state() { return block_.warps_[warp()]; }
    Exchange& mine() { return warp_state().lane[lane()]; }

    const char* at(unsigned offset, unsigned bytes) const {
        check(offset % bytes == 0, "misaligned shared memory");
        check(offset + bytes <= block_.shared.size(), "beyond shared memory");
        return block_.shared.data() + offset;
    }
    char* at(unsigned offset, unsigned bytes) {
        return const_cast<char*>(std::as_const(*this).at(offset, bytes));
    }

    void copy(Block::Copy c) {
        at(c.to, c.bytes);
        check(reinterpret_cast<std::uintptr_t>(c.from) % c.bytes == 0, "misaligned global memory");
        const auto& ranges = block_.options.global;
        const bool known = std::any_of(ranges.begin(), ranges.end(), [&](Range r) {
            return c.from >= r.data && c.from + c.bytes <= r.data + r.bytes;
        });
        check(!c.inside || known, "copy from beyond global memory");
        if (fiber().groups.empty()) fiber().groups.emplace_back();
        if (block_.options.eager_copies)
            block_.land(c);
        else
            fiber().groups.back().push_back(c);
    }

    void wait(decltype(Block::Fiber::state) state, int seen) {
        fiber().state = state;
        fiber().seen = seen;
        block_.yield(thread_);
        fiber().state = Block::Fiber::ready;
    }

    // Synchronises the lanes of the warp; the last to arrive runs `operation` for all.
    template <class F>
    void together(const void* key, F operation) {
        Block::Warp& warp = warp_state();
        check(warp.arrived == 0 || warp.operation == key, "the lanes of a warp diverged");
        warp.operation = key;
        if (++warp.arrived == warp_size) {
            operation(warp.lane);
            warp.arrived = 0;
            ++warp.generation;
            return;
        }
        wait(Block::Fiber::in_warp, warp.generation);
    }

    Fragment load_matrices(unsigned row, bool transposed) {
        at(row, vector_bytes);
        mine().in.word[0] = row;
        together(transposed ? &transpose_key : &load_key, [&](Exchange* lanes) {
            for (int l = 0; l < warp_size; ++l)
                for (int k = 0; k < 4; ++k)
                    for (int half = 0; half < 2; ++half) {
                        const int word = l % 4 * 2 + half;
                        const int row = transposed ? word : l / 4;
                        const int element = transposed ? l / 4 : word;
                        const unsigned from = lanes[8 * k + row].in.word[0] + 2 * element;
                        std::memcpy(reinterpret_cast<char*>(&lanes[l].out.word[k]) + 2 * half,
                                    &block_.shared[from], 2);
                    }
        });
        return mine().out;
    }

    template <class E>
    static void multiply_warp(Exchange* lanes) {
        constexpr int per_word = 4 / E::bytes, depth = 8 * per_word;
        double a[16][depth], b[8][depth];
        for (int l = 0; l < warp_size; ++l)
            for (int w = 0; w < 4; ++w)
                for (int e = 0; e < per_word; ++e) {
                    const int k = (l % 4 + w / 2 * 4) * per_word + e;
                    a[l / 4 + w % 2 * 8][k] = element_value(E{}, lanes[l].in.word[w], e);
                    if (w < 2)
                        b[l / 4][(l % 4 + w * 4) * per_word + e] =
                            element_value(E{}, lanes[l].b[w], e);
                }
        for (int l = 0; l < warp_size; ++l)
            for (int e = 0; e < 4; ++e) {
                const int row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
                double sum = lanes[l].c[e];
                for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
                lanes[l].c[e] = static_cast<float>(sum);
            }
    }

    Block& block_;
    int thread_;
};

inline void Block::enter(unsigned low, unsigned high, int thread) {
    const auto address = static_cast<std::uintptr_t>(low) | static_cast<std::uintptr_t>(high) << 32;
    reinterpret_cast<Block*>(address)->thread_main(thread);
}

inline void Block::thread_main(int thread) {
    try {
        Machine machine(*this, thread);
        (*body_)(machine);
    } catch (const std::exception& error) {
        error_ = error.what();
    }
    fibers_[thread].state = Fiber::done;
    _longjmp(scheduler_, 1);
}

inline bool Block::run_warp(int warp) {
    bool any = false;
    for (bool progress = true; progress; any |= progress) {
        progress = false;
        for (int t = warp * warp_size; t < (warp + 1) * warp_size && error_.empty(); ++t)
            if (can_run(t)) {
                progress = true;
                resume(fibers_[t]);
            }
    }
    return any;
}

inline void Block::run(int x, int y, int z, const std::function<void(Machine&)>& body) {
    x_ = x, y_ = y, z_ = z, body_ = &body, arrived_ = 0;
    std::fill(shared.begin(), shared.end(), static_cast<char>(0xff));
    for (Warp& warp : warps_) warp.arrived = 0;
    const auto address = reinterpret_cast<std::uintptr_t>(this);
    for (int t = 0; t < threads_; ++t) {
        Fiber& fiber = fibers_[t];
        fiber.groups.clear();
        fiber.state = Fiber::ready;
        fiber.begun = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 3,
                    static_cast<unsigned>(address), static_cast<unsigned>(address >> 32), t);
    }
    std::vector<int> order(warps_.size());
    for (std::size_t w = 0; w < order.size(); ++w) order[w] = static_cast<int>(w);
    for (bool progress = true; progress && error_.empty();) {
        progress = false;
        std::shuffle(order.begin(), order.end(), generator_);
        for (const int warp : order) progress |= run_warp(warp);
    }
    if (!error_.empty()) throw std::runtime_error(error_);
    for (const Fiber& fiber : fibers_)
        check(fiber.state == Fiber::done, "threads wait for one another forever");
}

}  // namespace sslfast::emulation
