// Which elements of a logit matrix are positives or left out, and which tiles need masks for them.
#pragma once

#include <cstdint>

#include <sslfast/host_device.h>

namespace sslfast {

// Row row_base + a and column column_base + (a + shift) % length are a positive pair, for
// 0 <= a < length; with leave_out_self, row_base + a and column_base + a are the same sample.
struct Pairing {
    std::int64_t length, shift, row_base, column_base;  // 0 <= shift < length, or both 0
    bool leave_out_self;

    // The column of row i's positive, or -1.
    SSLFAST_HOST_DEVICE std::int64_t positive_of(std::int64_t i) const {
        const std::int64_t a = i - row_base, to = a + shift;
        if (a < 0 || a >= length) return -1;
        return column_base + (to < length ? to : to - length);
    }

    // The column that is row i itself and left out, or -1.
    SSLFAST_HOST_DEVICE std::int64_t self_of(std::int64_t i) const {
        const std::int64_t a = i - row_base;
        return leave_out_self && a >= 0 && a < length ? column_base + a : -1;
    }
};

// Columns [first, last) that a diagonal crosses in a block of rows.
struct Crossing {
    int first, last;

    SSLFAST_HOST_DEVICE bool meets(int begin, int end) const { return first < end && begin < last; }
};

// Where the named elements of a block of rows are: at most three diagonals cross it, so nearly all
// of its tiles need no mask.
struct NamedColumns {
    Crossing straight, wrapped, itself;

    SSLFAST_HOST_DEVICE NamedColumns(const Pairing& p, std::int64_t first_row, int rows)
        : straight(crossing(p, first_row, rows, 0, p.length - p.shift, p.shift)),
          wrapped(crossing(p, first_row, rows, p.length - p.shift, p.length, p.shift - p.length)),
          itself(crossing(p, first_row, rows, 0, p.leave_out_self ? p.length : 0, 0)) {}

    SSLFAST_HOST_DEVICE bool meet(int begin, int end) const {
        return straight.meets(begin, end) || wrapped.meets(begin, end) || itself.meets(begin, end);
    }

  private:
    // The diagonal (row_base + a, column_base + a + offset), begin <= a < end.
    static SSLFAST_HOST_DEVICE Crossing crossing(const Pairing& p, std::int64_t first_row, int rows,
                                                 std::int64_t begin, std::int64_t end,
                                                 std::int64_t offset) {
        const std::int64_t top = first_row - p.row_base, bottom = top + rows;
        const std::int64_t first = top > begin ? top : begin, last = bottom < end ? bottom : end;
        if (first >= last) return {0, 0};
        return {static_cast<int>(p.column_base + first + offset),
                static_cast<int>(p.column_base + last + offset)};
    }
};

// Where part `index` begins of `count` items, split into `parts` whose sizes differ by one at most.
SSLFAST_HOST_DEVICE int part_begin(int count, int parts, int index) {
    return static_cast<int>(static_cast<std::int64_t>(count) * index / parts);
}

}  // namespace sslfast
