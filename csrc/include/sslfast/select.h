// The `count` smallest of a row of keys, ties by index: a radix search from the highest digit down,
// shared by the CPU and CUDA backends of kernels/patch_mask.
#pragma once

#include <cstdint>

#include <sslfast/philox.h>

namespace sslfast {

// Looks for the key of rank `count`, counted from 1. Each round the caller counts the digits of the
// keys that still match, and `take` narrows the search to the digit that holds the rank; after the
// last round `prefix` is that key, and `count` how many keys equal to it are among the smallest.
template <typename Key>
struct RadixSearch {
    static constexpr int digit_bits = 8, bins = 1 << digit_bits;

    std::int64_t count;
    int shift;  // of the digit that is sought
    Key prefix = 0;

    SSLFAST_HOST_DEVICE RadixSearch(std::int64_t count_, int key_bits)
        : count(count_), shift((key_bits + digit_bits - 1) / digit_bits * digit_bits - digit_bits) {
        if (count == 0) shift = -digit_bits;  // of nothing nothing is sought
    }

    SSLFAST_HOST_DEVICE bool done() const { return shift < 0; }

    SSLFAST_HOST_DEVICE bool matches(Key key) const {
        return ((key ^ prefix) >> shift) >> digit_bits == 0;
    }

    SSLFAST_HOST_DEVICE int digit(Key key) const {
        return static_cast<int>(key >> shift) & (bins - 1);
    }

    // `below`: how many matching keys have a smaller digit.
    SSLFAST_HOST_DEVICE void take(int digit, std::int64_t below) {
        prefix |= static_cast<Key>(digit) << shift;
        count -= below;
        shift -= digit_bits;
    }

    // The digit taken is one key's alone: this one's.
    SSLFAST_HOST_DEVICE void settle(Key key) {
        prefix = key;
        shift = -digit_bits;
    }

    // After the search: whether a key is chosen, given how many equal ones come before it.
    SSLFAST_HOST_DEVICE bool chosen(Key key, std::int64_t equal_before) const {
        return key < prefix || (key == prefix && equal_before < count);
    }
};

}  // namespace sslfast
