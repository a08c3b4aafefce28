// Selection of patches (kernels/patch_mask): random keys, a radix select and the indices, one
// sample at a time, in a few hundred bytes of the L1 cache.
#include <sslfast/cpu.h>
#include <sslfast/select.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace sslfast::cpu {
namespace {

template <typename Key>
RadixSelect<Key> radix_select(const Key* keys, std::int64_t length, std::int64_t count,
                              int key_bits) {
    RadixSelect<Key> found(count, key_bits);
    std::int32_t histogram[RadixSelect<Key>::bins];
    while (!found.done()) {
        std::memset(histogram, 0, sizeof histogram);
        for (std::int64_t e = 0; e < length; ++e)
            if (found.matches(keys[e])) ++histogram[found.digit(keys[e])];
        std::int64_t below = 0;
        int digit = 0;
        while (below + histogram[digit] < found.count) below += histogram[digit++];
        found.take(digit, below);
        if (histogram[digit] == 1 && !found.done())  // the usual case after the first digit
            found.settle(
                *std::find_if(keys, keys + length, [&](Key key) { return found.matches(key); }));
    }
    return found;
}

// Calls visit(e, whether it is among the smallest) for every element in order.
template <typename Key, typename Visit>
void for_each_choice(const Key* keys, std::int64_t length, const RadixSelect<Key>& found,
                     Visit visit) {
    std::int64_t equal = 0;
    for (std::int64_t e = 0; e < length; ++e) {
        visit(e, found.chosen(keys[e], equal));
        equal += keys[e] == found.prefix;
    }
}

// A stable partition: kept elements first, then hidden ones.
struct Partition {
    std::int64_t* ids_keep;
    std::int64_t* ids_restore;
    std::int64_t keep, kept = 0, hidden;

    Partition(std::int64_t* ids_keep_, std::int64_t* ids_restore_, std::int64_t keep_,
              std::int64_t visible)
        : ids_keep(ids_keep_), ids_restore(ids_restore_), keep(keep_), hidden(visible) {}

    void add(std::int64_t e, bool visible) {
        const std::int64_t place = visible ? kept++ : hidden++;
        if (place < keep) ids_keep[place] = e;
        ids_restore[e] = place;
    }
};

}  // namespace

void random_patch_mask(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                       std::uint64_t seed, std::int64_t stream, std::int64_t length,
                       std::int64_t keep, std::int64_t* ids_keep, std::int64_t* ids_restore,
                       bool* mask, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<std::uint32_t> keys(length + 3);
#pragma omp for schedule(static)
        for (std::int64_t sample = 0; sample < batch; ++sample) {
            for (std::int64_t first = 0; first < length; first += 4) {
                const Words4 words = philox_block(static_cast<std::uint32_t>(first / 4),
                                                  sample_ids[sample], step, stream, seed);
                std::copy(words.word, words.word + 4, keys.begin() + first);
            }
            const auto found = radix_select(keys.data(), length, keep, 32);
            Partition out(ids_keep + sample * keep, ids_restore + sample * length, keep, keep);
            bool* hidden = mask + sample * length;
            for_each_choice(keys.data(), length, found, [&](std::int64_t e, bool chosen) {
                out.add(e, chosen);
                hidden[e] = !chosen;
            });
        }
    }
}

void smallest_keys(const std::int64_t* keys, const std::int64_t* counts, std::int64_t batch,
                   std::int64_t length, int key_bits, bool* chosen, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t sample = 0; sample < batch; ++sample) {
        const auto* row = reinterpret_cast<const std::uint64_t*>(keys) + sample * length;
        const std::int64_t count = std::clamp<std::int64_t>(counts[sample], 0, length);
        const auto found = radix_select(row, length, count, key_bits);
        bool* out = chosen + sample * length;
        for_each_choice(row, length, found, [out](std::int64_t e, bool c) { out[e] = c; });
    }
}

void compact_mask(const bool* mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t* ids_keep, std::int64_t* ids_restore, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t sample = 0; sample < batch; ++sample) {
        const bool* hidden = mask + sample * length;
        const std::int64_t visible = std::count(hidden, hidden + length, false);
        Partition out(ids_keep + sample * keep, ids_restore + sample * length, keep, visible);
        for (std::int64_t e = 0; e < length; ++e) out.add(e, !hidden[e]);
    }
}

}  // namespace sslfast::cpu
