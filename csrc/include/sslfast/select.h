// The `count` smallest of a row of keys, ties by index: radix select, from the most significant
// digit down, shared by the CPU and CUDA backends of kernels/patch_mask.
#pragma once

#include <cstdint>

#include <sslfast/philox.h>

namespace sslfast {

// Looks for the key of rank `count`, counted from 1. Each round the caller makes a histogram of the
// next digit of the keys that match the prefix, and `take` appends to the prefix the digit that
// holds the rank; after the last round `prefix` is that key, and `count` how many keys equal to it
// are among the smallest.
template <typename Key>
struct RadixSelect {
    static constexpr int digit_bits = 8, bins = 1 << digit_bits;

    std::int64_t count;
    int shift;  // of the next digit
    Key prefix = 0;

    SSLFAST_HOST_DEVICE RadixSelect(std::int64_t count_, int key_bits)
        : count(count_), shift((key_bits + digit_bits - 1) / digit_bits * digit_bits - digit_bits) {
        if (count == 0) shift = -digit_bits;  // nothing to look for
    }

    SSLFAST_HOST_DEVICE bool done() const { return shift < 0; }

    SSLFAST_HOST_DEVICE bool matches(Key key) const {
        return ((key ^ prefix) >> shift) >> digit_bits == 0;
    }

    SSLFAST_HOST_DEVICE int digit(Key key) const {
        return static_cast<int>(key >> shift) & (bins - 1);
    }

    // `below`: matching keys with a smaller digit, an exclusive prefix sum of the histogram.
    SSLFAST_HOST_DEVICE void take(int digit, std::int64_t below) {
        prefix |= static_cast<Key>(digit) << shift;
        count -= below;
        shift -= digit_bits;
    }

    // Ends early: this is the only key that matches the prefix.
    SSLFAST_HOST_DEVICE void settle(Key key) {
        prefix = key;
        shift = -digit_bits;
    }

    // At the end: whether a key is chosen, given how many equal ones come before it.
    SSLFAST_HOST_DEVICE bool chosen(Key key, std::int64_t equal_before) const {
        return key < prefix || (key == prefix && equal_before < count);
    }
};

}  // namespace sslfast
