// Loops that compilers make good vector instructions of, compiled once for every instruction set.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace edgefold {
namespace {

inline void snap(const float* x, int64_t count, float scale, float levels, int16_t* out) {
    // Added to a float of up to 2^22 it leaves no bits behind the point: the sum is rounded, halves to even.
    constexpr float no_fraction = 12582912.0f;
    for (int64_t i = 0; i < count; ++i) {
        float q = x[i] * scale;
        q = q > -levels ? q : -levels;  // of NaN, too
        q = q < levels ? q : levels;
        out[i] = static_cast<int16_t>((q + no_fraction) - no_fraction);
    }
}

inline void pool(const Pooling& p) {
    const int64_t first_row = std::max(p.top, int64_t{0}), end_row = std::min(p.top + p.window_height, p.height);
    const float share = 1.0f / static_cast<float>(p.window_height * p.window_width);
    for (int64_t column = 0; column < p.columns; ++column) {
        const int64_t start = p.left + column * p.stride;
        const int64_t first = std::max(start, int64_t{0}), end = std::min(start + p.window_width, p.width);
        float* y = p.y + column * p.channels;
        bool begun = false;
        for (int64_t row = first_row; row < end_row; ++row)
            for (int64_t at = first; at < end; ++at) {
                const float* x = p.image + (row * p.width + at) * p.channels;
                if (!begun)
                    std::memcpy(y, x, static_cast<size_t>(p.channels) * sizeof(float));
                else if (p.mean)
                    for (int64_t c = 0; c < p.channels; ++c) y[c] = y[c] + x[c];
                else
                    for (int64_t c = 0; c < p.channels; ++c) y[c] = x[c] > y[c] ? x[c] : y[c];
                begun = true;
            }
        if (p.mean)
            for (int64_t c = 0; c < p.channels; ++c) y[c] = y[c] * share;
    }
}

}  // namespace
}  // namespace edgefold
