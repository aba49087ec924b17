// Kernels on 512-bit registers: one output channel a 32-bit lane. The file that includes this says how bits are
// counted.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "blocks.h"
#include "loops.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 16;

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

inline __mmask16 negative(__m512 y) {  // of NaN, too
    return _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NGE_UQ);
}

inline __m512i broadcast(const uint32_t* word) { return _mm512_set1_epi32(static_cast<int>(*word)); }

inline const int32_t* base_of(const Row& row, int64_t column) {
    const int64_t behind = column - (row.width - row.right);
    return column < row.left ? row.edges + column * kLanes
           : behind >= 0     ? row.edges + (row.left + behind) * kLanes
                             : row.interior;
}

// Half of the base, rounded down, for the pixels x .. x + P - 1: kernels subtract the bits that differ.
template <int P>
inline void start(const Row& row, int64_t x, __m512i (&sum)[P]) {
    const __m512i interior = _mm512_srai_epi32(_mm512_loadu_si512(row.interior), 1);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p] = interior;
    if (x >= row.left && x + P <= row.width - row.right) return;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p] = _mm512_srai_epi32(_mm512_loadu_si512(base_of(row, x + p)), 1);
}

// What stands behind the sums of the pixels x .. x + P - 1, which are whole sums, or as `start` began them.
template <int P, bool WHOLE = false>
inline void finish(const Row& row, int64_t x, __m512i (&sum)[P]) {
    const Epilogue& e = row.epilogue;
    const __mmask16 lanes = first_lanes(row.channels);
    __m512 scale = _mm512_loadu_ps(e.scale);
    const __m512 bias = _mm512_loadu_ps(e.bias);
    if (!WHOLE && row.odd) {
        const __m512i one = _mm512_set1_epi32(1);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            const __m512i rest = _mm512_and_si512(_mm512_loadu_si512(base_of(row, x + p)), one);
            sum[p] = _mm512_add_epi32(_mm512_add_epi32(sum[p], sum[p]), rest);
        }
    } else if (!WHOLE) {
        scale = _mm512_add_ps(scale, scale);  // exact, and so is the product of twice the scale and half the sum
    }
    __m512 y[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) y[p] = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[p]), scale), bias);
    const auto activate = [&](const float* slopes) {
        const __m512 slope = _mm512_loadu_ps(slopes);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
            y[p] = _mm512_mask_mul_ps(y[p], _mm512_cmp_ps_mask(y[p], _mm512_setzero_ps(), _CMP_LT_OQ), y[p], slope);
    };
    if (e.slope != nullptr) activate(e.slope);
    if (row.residual != nullptr)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
            y[p] = _mm512_add_ps(y[p], _mm512_maskz_loadu_ps(lanes, row.residual + (x + p) * row.pixel_stride));
    if (e.slope_after != nullptr) activate(e.slope_after);
    if (row.y != nullptr)
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) _mm512_mask_storeu_ps(row.y + (x + p) * row.pixel_stride, lanes, y[p]);
    if (row.bits == nullptr) return;
    if (e.sign_scale != nullptr) {
        const __m512 sign_scale = _mm512_loadu_ps(e.sign_scale);
        const __m512 sign_bias = _mm512_loadu_ps(e.sign_bias);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) y[p] = _mm512_add_ps(_mm512_mul_ps(y[p], sign_scale), sign_bias);
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
        const unsigned bits = static_cast<unsigned>(negative(y[p]) & lanes);
        uint8_t* at = row.bits + (x + p) * 4;
        at[0] = static_cast<uint8_t>(bits);
        if (row.channels > 8) at[1] = static_cast<uint8_t>(bits >> 8);
    }
}

// Products on a grid: `Dot::add` adds the products of pairs of int16. STEP 0: as the row says.
template <int STEP, typename Dot>
struct GridProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        __m512i sum[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sum[p] = _mm512_setzero_si512();
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pairs = cells + row.offsets[term];
            const __m512i w = _mm512_loadu_si512(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                int32_t pair;
                std::memcpy(&pair, pairs + p * step, sizeof pair);
                sum[p] = Dot::add(sum[p], w, _mm512_set1_epi32(pair));
            }
        }
        finish<P, true>(row, x, sum);
    }
};

template <typename Dot>
void avx512_grid_row(const Row& row) {
    if (row.step == 3) return in_blocks<14, GridProducts<3, Dot>>(row);  // colour images
    if (row.step == 6) return in_blocks<14, GridProducts<6, Dot>>(row);
    in_blocks<8, GridProducts<0, Dot>>(row);
}

// The same channel by channel.
template <typename Dot>
struct ChannelProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        __m512i sum[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sum[p] = _mm512_setzero_si512();
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pixels = cells + row.offsets[term];
            const __m512i w = _mm512_loadu_si512(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const void* at = pixels + p * row.step;
                sum[p] =
                    Dot::add(sum[p], w, _mm512_cvtepi16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(at))));
            }
        }
        finish<P, true>(row, x, sum);
    }
};

template <typename Dot>
void avx512_channelwise_row(const Row& row) {
    in_blocks<8, ChannelProducts<Dot>>(row);
}

inline void avx512_binarize(const Signs& signs) {
    const int64_t per_group = signs.channels / signs.groups, group_words = (per_group + 31) / 32;
    for (int64_t group = 0; group < signs.groups; ++group)
        for (int64_t word = 0; word < group_words; ++word) {
            const int64_t first = group * per_group + word * 32;
            const int64_t count = per_group - word * 32 < 32 ? per_group - word * 32 : 32;
            const __mmask16 low = first_lanes(count < 16 ? count : 16);
            const __mmask16 high = first_lanes(count < 16 ? 0 : count - 16);
            const float* x = signs.x + first;
            uint32_t* words = signs.words + (group * group_words + word) * signs.pixels;
            const bool affine = signs.scale != nullptr;
            __m512 scale[2], bias[2];
            if (affine) {
                scale[0] = _mm512_maskz_loadu_ps(low, signs.scale + first);
                scale[1] = _mm512_maskz_loadu_ps(high, signs.scale + first + 16);
                bias[0] = _mm512_maskz_loadu_ps(low, signs.bias + first);
                bias[1] = _mm512_maskz_loadu_ps(high, signs.bias + first + 16);
            }
            for (int64_t pixel = 0; pixel < signs.pixels; ++pixel, x += signs.channels) {
                __m512 y[2] = {_mm512_maskz_loadu_ps(low, x), _mm512_maskz_loadu_ps(high, x + 16)};
                if (affine)
                    for (int i = 0; i < 2; ++i) y[i] = _mm512_add_ps(_mm512_mul_ps(y[i], scale[i]), bias[i]);
                words[pixel] =
                    static_cast<uint32_t>(negative(y[0]) & low) | static_cast<uint32_t>(negative(y[1]) & high) << 16;
            }
        }
}

}  // namespace
}  // namespace edgefold
