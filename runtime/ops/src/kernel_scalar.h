// Kernels in plain C++ on 64-bit words; the file that includes this says what counts the bits of one.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "loops.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 8;

inline bool negative(float x) { return !(x >= 0.0f); }  // of NaN, too

// Step by step over all lanes, so that compilers make vector instructions of it; only the real lanes are read and
// written.
inline void finish(const Row& row, int64_t x, const int32_t (&sums)[kLanes]) {
    const Epilogue& e = row.epilogue;
    const int64_t at = x * row.pixel_stride;
    float y[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        y[lane] = static_cast<float>(sums[lane]) * e.scale[lane];
        y[lane] = y[lane] + e.bias[lane];
    }
    const auto activate = [&](const float* slope) {
        for (int64_t lane = 0; lane < kLanes; ++lane) y[lane] = y[lane] < 0.0f ? y[lane] * slope[lane] : y[lane];
    };
    if (e.slope != nullptr) activate(e.slope);
    if (row.residual != nullptr)
        for (int64_t lane = 0; lane < row.channels; ++lane) y[lane] = y[lane] + row.residual[at + lane];
    if (e.slope_after != nullptr) activate(e.slope_after);
    if (row.y != nullptr) std::memcpy(row.y + at, y, static_cast<size_t>(row.channels) * sizeof(float));
    if (row.bits == nullptr) return;
    if (e.sign_scale != nullptr)
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            y[lane] = y[lane] * e.sign_scale[lane];
            y[lane] = y[lane] + e.sign_bias[lane];
        }
    unsigned bits = 0;
    for (int64_t lane = 0; lane < row.channels; ++lane) bits |= negative(y[lane]) ? 1u << lane : 0u;
    row.bits[x * 4] = static_cast<uint8_t>(bits);
}

template <uint64_t (*bit_count)(uint64_t)>
void scalar_binary_row(const Row& row) {
    const int64_t pairs = row.terms / 2;
    for (int64_t x = 0; x < row.width; ++x) {
        const uint32_t* pixel = static_cast<const uint32_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        uint64_t differing[kLanes] = {};
        for (int64_t pair = 0; pair < pairs; ++pair, weights += 2 * kLanes) {
            // As two words lie in the memory of a little-endian machine.
            const uint64_t low = pixel[row.offsets[2 * pair]], high = pixel[row.offsets[2 * pair + 1]];
            const uint64_t word = low | high << 32;
#pragma GCC unroll 8
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                uint64_t w;
                std::memcpy(&w, weights + 2 * lane, sizeof w);
                differing[lane] += bit_count(word ^ w);
            }
        }
        if (row.terms % 2 != 0) {
            const uint64_t word = pixel[row.offsets[row.terms - 1]];
            for (int64_t lane = 0; lane < kLanes; ++lane) differing[lane] += bit_count(word ^ weights[lane]);
        }
        const int64_t behind = x - (row.width - row.right);
        const int32_t* base = x < row.left  ? row.edges + x * kLanes
                              : behind >= 0 ? row.edges + (row.left + behind) * kLanes
                                            : row.interior;
        int32_t sums[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane)
            sums[lane] = base[lane] - 2 * static_cast<int32_t>(differing[lane]);
        finish(row, x, sums);
    }
}

inline void scalar_grid_row(const Row& row) {
    for (int64_t x = 0; x < row.width; ++x) {
        const int16_t* pixel = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        int32_t sums[kLanes] = {};
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pair = pixel + row.offsets[term];
            const int32_t first = pair[0], second = pair[1];
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                const int16_t low = static_cast<int16_t>(weights[lane]);
                const int16_t high = static_cast<int16_t>(weights[lane] >> 16);
                sums[lane] += first * low + second * high;
            }
        }
        finish(row, x, sums);
    }
}

inline void scalar_channelwise_row(const Row& row) {
    for (int64_t x = 0; x < row.width; ++x) {
        const int16_t* pixel = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        int32_t sums[kLanes] = {};
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes)
            for (int64_t lane = 0; lane < kLanes; ++lane)
                sums[lane] += pixel[row.offsets[term] + lane] * static_cast<int16_t>(weights[lane]);
        finish(row, x, sums);
    }
}

// The signs of `count` floats, at most 32, as bits.
inline uint32_t signs_of(const float* x, const float* scale, const float* bias, int64_t count) {
    uint32_t bits = 0;
    int64_t i = 0;
#if defined(__SSE2__)  // which every x86-64 has
    for (; i + 4 <= count; i += 4) {
        __m128 y = _mm_loadu_ps(x + i);
        if (scale != nullptr) y = _mm_add_ps(_mm_mul_ps(y, _mm_loadu_ps(scale + i)), _mm_loadu_ps(bias + i));
        bits |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpnge_ps(y, _mm_setzero_ps()))) << i;
    }
#endif
    for (; i < count; ++i) {
        float y = x[i];
        if (scale != nullptr) {
            y = y * scale[i];
            y = y + bias[i];
        }
        bits |= negative(y) ? uint32_t{1} << i : 0u;
    }
    return bits;
}

// ISO C++ has no way to ask for one instruction set's code of an inline function: each file has its own copy.
inline void scalar_binarize(const Signs& signs) {
    const int64_t per_group = signs.channels / signs.groups, group_words = (per_group + 31) / 32;
    for (int64_t pixel = 0; pixel < signs.pixels; ++pixel)
        for (int64_t group = 0; group < signs.groups; ++group)
            for (int64_t word = 0; word < group_words; ++word) {
                const int64_t first = group * per_group + word * 32;
                const int64_t count = per_group - word * 32 < 32 ? per_group - word * 32 : 32;
                const float* scale = signs.scale == nullptr ? nullptr : signs.scale + first;
                const float* bias = signs.bias == nullptr ? nullptr : signs.bias + first;
                signs.words[(group * group_words + word) * signs.pixels + pixel] =
                    signs_of(signs.x + pixel * signs.channels + first, scale, bias, count);
            }
}

}  // namespace
}  // namespace edgefold
