// Makes the double-float factors of tile.h; apart from it, because tile.h is compiled for every
// level of the instruction set and must not take functions of the standard library along.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "tile.h"

namespace sslfast::cpu {

inline Factor make_factor(double value) {
    float high = static_cast<float>(value);
    if (std::abs(static_cast<double>(high)) > std::abs(value)) high = std::nextafter(high, 0.0f);
    const float rest = static_cast<float>(std::abs(value - high));
    return {high, std::copysign(std::max(rest, FLT_MIN), high)};
}

}  // namespace sslfast::cpu
