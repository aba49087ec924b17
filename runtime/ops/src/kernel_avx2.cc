// For x86 with AVX2: one output channel a 32-bit lane of 256-bit registers; bits are counted by looking up half bytes.
// A carry-save adder in front saves a fifth of the instructions, and was measured to be slower (Zen 4) for want of
// registers.
#include <immintrin.h>

#include <cstring>

#include "blocks.h"
#include "loops.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 8;
constexpr int kPixels = 7;                    // whole rows of 7, 14, 28, 56, 112 and 224 pixels
constexpr int64_t kTermsBeforeOverflow = 31;  // a byte holds 31 counts of 8

inline __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline unsigned negative(__m256 y) {  // of NaN, too
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_NGE_UQ)));
}

inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

inline __m256i broadcast(const uint32_t* word) { return _mm256_set1_epi32(static_cast<int>(*word)); }

inline __m256i count_bytes(__m256i x) {
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(counts, _mm256_and_si256(x, nibble)),
                           _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble)));
}

inline __m256i sum_bytes(__m256i x) {  // the four bytes of each lane
    return _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

inline const int32_t* base_of(const Row& row, int64_t column) {
    const int64_t behind = column - (row.width - row.right);
    return column < row.left ? row.edges + column * kLanes
           : behind >= 0     ? row.edges + (row.left + behind) * kLanes
                             : row.interior;
}

// What stands behind the sums of the pixels x .. x + P - 1.
template <int P>
inline void finish(const Row& row, int64_t x, const __m256i (&sum)[P]) {
    const Epilogue& e = row.epilogue;
    const bool whole = row.channels == kLanes;
    const __m256i lanes = first_lanes(row.channels);
    const __m256 scale = _mm256_loadu_ps(e.scale), bias = _mm256_loadu_ps(e.bias);
    const auto read = [&](const float* at) { return whole ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, lanes); };
    __m256 y[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) y[p] = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[p]), scale), bias);
    const auto activate = [&](const float* slopes) {
        const __m256 slope = _mm256_loadu_ps(slopes);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            const __m256 below = _mm256_cmp_ps(y[p], _mm256_setzero_ps(), _CMP_LT_OQ);
            y[p] = _mm256_blendv_ps(y[p], _mm256_mul_ps(y[p], slope), below);
        }
    };
    if (e.slope != nullptr) activate(e.slope);
    if (row.residual != nullptr) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) y[p] = _mm256_add_ps(y[p], read(row.residual + (x + p) * row.pixel_stride));
    }
    if (e.slope_after != nullptr) activate(e.slope_after);
    if (row.y != nullptr) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            float* at = row.y + (x + p) * row.pixel_stride;
            if (whole)
                _mm256_storeu_ps(at, y[p]);
            else
                _mm256_maskstore_ps(at, lanes, y[p]);
        }
    }
    if (row.bits == nullptr) return;
    if (e.sign_scale != nullptr) {
        const __m256 sign_scale = _mm256_loadu_ps(e.sign_scale), sign_bias = _mm256_loadu_ps(e.sign_bias);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) y[p] = _mm256_add_ps(_mm256_mul_ps(y[p], sign_scale), sign_bias);
    }
    const unsigned real = (1u << row.channels) - 1u;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) row.bits[(x + p) * 4] = static_cast<uint8_t>(negative(y[p]) & real);
}

// Bits are counted in bytes, which are added up before one can overflow.
template <int STEP>
struct Popcount {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = static_cast<const uint32_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        __m256i differing[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) differing[p] = _mm256_setzero_si256();
        for (int64_t term = 0; term < row.terms;) {
            const int64_t end = row.terms - term > kTermsBeforeOverflow ? term + kTermsBeforeOverflow : row.terms;
            __m256i bytes[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) bytes[p] = _mm256_setzero_si256();
            for (; term < end; ++term, weights += kLanes) {
                const uint32_t* words = pixels + row.offsets[term];
                const __m256i w = load(weights);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p)
                    bytes[p] = _mm256_add_epi8(bytes[p], count_bytes(_mm256_xor_si256(w, broadcast(words + p * step))));
            }
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) differing[p] = _mm256_add_epi32(differing[p], sum_bytes(bytes[p]));
        }
        __m256i sum[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
            sum[p] = _mm256_sub_epi32(load(base_of(row, x + p)), _mm256_add_epi32(differing[p], differing[p]));
        finish<P>(row, x, sum);
    }
};

// Products on a grid.
template <int STEP>
struct GridProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        __m256i sum[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sum[p] = _mm256_setzero_si256();
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pairs = cells + row.offsets[term];
            const __m256i w = load(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                int32_t pair;
                std::memcpy(&pair, pairs + p * step, sizeof pair);
                sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(w, _mm256_set1_epi32(pair)));
            }
        }
        finish<P>(row, x, sum);
    }
};

// The same channel by channel.
struct ChannelProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        __m256i sum[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sum[p] = _mm256_setzero_si256();
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pixels = cells + row.offsets[term];
            const __m256i w = load(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const void* at = pixels + p * row.step;
                const __m256i values = _mm256_cvtepi16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(at)));
                sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(w, values));
            }
        }
        finish<P>(row, x, sum);
    }
};

void channelwise_row(const Row& row) { in_blocks<6, ChannelProducts>(row); }

void grid_row(const Row& row) {
    if (row.step == 3) return in_blocks<8, GridProducts<3>>(row);  // colour images
    if (row.step == 6) return in_blocks<8, GridProducts<6>>(row);
    in_blocks<6, GridProducts<0>>(row);
}

void binary_row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, Popcount<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, Popcount<2>>(row);
    in_blocks<2, Popcount<0>>(row);
}

void binarize(const Signs& signs) {
    const int64_t per_group = signs.channels / signs.groups, group_words = (per_group + 31) / 32;
    const bool affine = signs.scale != nullptr;
    for (int64_t group = 0; group < signs.groups; ++group)
        for (int64_t word = 0; word < group_words; ++word) {
            const int64_t first = group * per_group + word * 32;
            const int64_t count = per_group - word * 32 < 32 ? per_group - word * 32 : 32;
            uint32_t* words = signs.words + (group * group_words + word) * signs.pixels;
            for (int64_t pixel = 0; pixel < signs.pixels; ++pixel) {
                const float* x = signs.x + pixel * signs.channels + first;
                uint32_t bits = 0;
                for (int64_t i = 0; i < count; i += kLanes) {
                    const __m256i lanes = first_lanes(count - i);
                    __m256 y = _mm256_maskload_ps(x + i, lanes);
                    if (affine)
                        y = _mm256_add_ps(_mm256_mul_ps(y, _mm256_maskload_ps(signs.scale + first + i, lanes)),
                                          _mm256_maskload_ps(signs.bias + first + i, lanes));
                    bits |= (negative(y) & static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)))) << i;
                }
                words[pixel] = bits;
            }
        }
}

}  // namespace

extern const Kernels kAvx2;
const Kernels kAvx2 = {"avx2", kLanes, false, binary_row, grid_row, channelwise_row, binarize, snap, pool};

}  // namespace edgefold
