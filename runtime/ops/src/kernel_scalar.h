// Kernels in plain C++ on 64-bit words; the file that includes this says what counts the bits of one.
#pragma once

#include <cstring>

#include "kernels.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 8;

inline bool negative(float x) { return !(x >= 0.0f); }  // of NaN, too

inline void finish(const Row& row, int64_t x, const uint32_t (&differing)[kLanes], const int32_t* base) {
    const Epilogue& e = row.epilogue;
    const int64_t at = x * row.pixel_stride;
    uint8_t bits = 0;
    for (int64_t lane = 0; lane < row.channels; ++lane) {
        float y = static_cast<float>(base[lane] - 2 * static_cast<int32_t>(differing[lane])) * e.scale[lane];
        y = y + e.bias[lane];
        if (e.slope != nullptr) y = y < 0.0f ? y * e.slope[lane] : y;
        if (row.residual != nullptr) y = y + row.residual[at + lane];
        if (e.slope_after != nullptr) y = y < 0.0f ? y * e.slope_after[lane] : y;
        if (row.y != nullptr) row.y[at + lane] = y;
        if (e.sign_scale != nullptr) {
            y = y * e.sign_scale[lane];
            y = y + e.sign_bias[lane];
        }
        bits = static_cast<uint8_t>(bits | (negative(y) ? 1u << lane : 0u));
    }
    if (row.bits != nullptr) row.bits[x * 4] = bits;
}

template <uint32_t (*bit_count)(uint64_t)>
void scalar_row(const Row& row) {
    const int64_t pairs = row.terms / 2;
    for (int64_t x = 0; x < row.width; ++x) {
        const uint32_t* pixel = row.pixels + x * row.step;
        uint32_t differing[kLanes] = {};
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const uint64_t low = pixel[row.offsets[2 * pair]], high = pixel[row.offsets[2 * pair + 1]];
            const uint64_t word = low | high << 32;
            uint64_t weights[kLanes];
            std::memcpy(weights, row.weights + pair * kLanes * 2, sizeof weights);
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                // The order of the two halves in memory does not matter where the machine is little-endian.
                differing[lane] += bit_count(word ^ weights[lane]);
            }
        }
        if (row.terms % 2 != 0) {
            const uint64_t word = pixel[row.offsets[row.terms - 1]];
            const uint32_t* weights = row.weights + (row.terms - 1) * kLanes;
            for (int64_t lane = 0; lane < kLanes; ++lane) differing[lane] += bit_count(word ^ weights[lane]);
        }
        const int32_t* base = x < row.left ? row.edges + x * kLanes
                              : x < row.width - row.right
                                  ? row.interior
                                  : row.edges + (row.left + x - (row.width - row.right)) * kLanes;
        finish(row, x, differing, base);
    }
}

// ISO C++ has no way to ask for one instruction set's code of an inline function: each file has its own copy.
inline void scalar_binarize(const Signs& signs) {
    const int64_t per_group = signs.channels / signs.groups, group_words = (per_group + 31) / 32;
    for (int64_t pixel = 0; pixel < signs.pixels; ++pixel)
        for (int64_t group = 0; group < signs.groups; ++group)
            for (int64_t word = 0; word < group_words; ++word) {
                const int64_t first = group * per_group + word * 32;
                const int64_t count = per_group - word * 32 < 32 ? per_group - word * 32 : 32;
                const float* x = signs.x + pixel * signs.channels + first;
                uint32_t bits = 0;
                for (int64_t i = 0; i < count; ++i) {
                    float y = x[i];
                    if (signs.scale != nullptr) {
                        y = y * signs.scale[first + i];
                        y = y + signs.bias[first + i];
                    }
                    bits |= negative(y) ? uint32_t{1} << i : 0u;
                }
                signs.words[(group * group_words + word) * signs.pixels + pixel] = bits;
            }
}

}  // namespace
}  // namespace edgefold
