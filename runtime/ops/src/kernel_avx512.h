// Kernels on 512-bit registers: one output channel a 32-bit lane. The file that includes this says how bits are counted.
//
// Two products at a time go through a carry-save adder: with S the running sum's lowest bits and x = pixel xor weight,
//     t = S ^ x1    S' = t ^ x2    carry = t ? x2 : S = t ? ~S' : S
// is S + x1 + x2 = S' + 2 * carry, bit by bit. vpternlog makes each of the three in one instruction, the products
// included (t = S ^ pixel ^ weight), and only the carry is counted: 5 instructions for two words instead of the 6 of
// twice xor, popcount and add.
#pragma once

#include <immintrin.h>

#include "blocks.h"
#include "kernels.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 16;
constexpr int kXor3 = 0x96;
constexpr int kCarry = 0x3a;  // of (t, S', S): t ? ~S' : S

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

inline __mmask16 negative(__m512 y) {  // of NaN, too
    return _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NGE_UQ);
}

inline __m512i broadcast(const uint32_t* word) { return _mm512_set1_epi32(static_cast<int>(*word)); }

// What stands behind the sums of the pixels x .. x + P - 1.
template <int P>
inline void finish(const Row& row, int64_t x, const __m512i (&differing)[P]) {
    const Epilogue& e = row.epilogue;
    const __mmask16 lanes = first_lanes(row.channels);
    const __m512 scale = _mm512_maskz_loadu_ps(lanes, e.scale), bias = _mm512_maskz_loadu_ps(lanes, e.bias);
    const bool inside = x >= row.left && x + P <= row.width - row.right;
    __m512 y[P];
    const __m512i interior = _mm512_loadu_si512(row.interior);
    for (int p = 0; p < P; ++p) {
        __m512i base = interior;
        if (!inside) {
            const int64_t column = x + p, behind = column - (row.width - row.right);
            if (column < row.left)
                base = _mm512_loadu_si512(row.edges + column * kLanes);
            else if (behind >= 0)
                base = _mm512_loadu_si512(row.edges + (row.left + behind) * kLanes);
        }
        const __m512i sum = _mm512_sub_epi32(base, _mm512_add_epi32(differing[p], differing[p]));
        y[p] = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), bias);
    }
    const auto activate = [&](const float* slopes) {
        const __m512 slope = _mm512_maskz_loadu_ps(lanes, slopes);
        for (int p = 0; p < P; ++p)
            y[p] = _mm512_mask_mul_ps(y[p], _mm512_cmp_ps_mask(y[p], _mm512_setzero_ps(), _CMP_LT_OQ), y[p], slope);
    };
    if (e.slope != nullptr) activate(e.slope);
    if (row.residual != nullptr)
        for (int p = 0; p < P; ++p)
            y[p] = _mm512_add_ps(y[p], _mm512_maskz_loadu_ps(lanes, row.residual + (x + p) * row.pixel_stride));
    if (e.slope_after != nullptr) activate(e.slope_after);
    if (row.y != nullptr)
        for (int p = 0; p < P; ++p) _mm512_mask_storeu_ps(row.y + (x + p) * row.pixel_stride, lanes, y[p]);
    if (row.bits == nullptr) return;
    if (e.sign_scale != nullptr) {
        const __m512 sign_scale = _mm512_maskz_loadu_ps(lanes, e.sign_scale);
        const __m512 sign_bias = _mm512_maskz_loadu_ps(lanes, e.sign_bias);
        for (int p = 0; p < P; ++p) y[p] = _mm512_add_ps(_mm512_mul_ps(y[p], sign_scale), sign_bias);
    }
    for (int p = 0; p < P; ++p) {
        const unsigned bits = static_cast<unsigned>(negative(y[p]) & lanes);
        uint8_t* at = row.bits + (x + p) * 4;
        at[0] = static_cast<uint8_t>(bits);
        if (row.channels > 8) at[1] = static_cast<uint8_t>(bits >> 8);
    }
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
                words[pixel] = static_cast<uint32_t>(negative(y[0]) & low) |
                               static_cast<uint32_t>(negative(y[1]) & high) << 16;
            }
        }
}

}  // namespace
}  // namespace edgefold
