// For x86 with AVX2: one output channel a 32-bit lane of 256-bit registers; bits are counted by looking up half bytes.
#include <immintrin.h>

#include "blocks.h"
#include "kernels.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 8;
constexpr int kPixels = 4;
constexpr int64_t kTermsBeforeOverflow = 31 * 4;  // a byte holds 31 counts of 8

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

template <int P>
inline void finish(const Row& row, int64_t x, const __m256i (&differing)[P]) {
    const Epilogue& e = row.epilogue;
    const bool whole = row.channels == kLanes;
    const __m256i lanes = first_lanes(row.channels);
    const auto read = [&](const float* at) { return whole ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, lanes); };
    const auto activate = [](__m256 y, __m256 slope) {
        const __m256 below = _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_LT_OQ);
        return _mm256_blendv_ps(y, _mm256_mul_ps(y, slope), below);
    };
    const unsigned real = (1u << row.channels) - 1u;
    const __m256 scale = _mm256_loadu_ps(e.scale), bias = _mm256_loadu_ps(e.bias);
    for (int p = 0; p < P; ++p) {
        const int64_t column = x + p, behind = column - (row.width - row.right);
        const int32_t* base = column < row.left ? row.edges + column * kLanes
                              : behind >= 0     ? row.edges + (row.left + behind) * kLanes
                                                : row.interior;
        const __m256i sum = _mm256_sub_epi32(load(base), _mm256_add_epi32(differing[p], differing[p]));
        __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale), bias);
        if (e.slope != nullptr) y = activate(y, _mm256_loadu_ps(e.slope));
        if (row.residual != nullptr) y = _mm256_add_ps(y, read(row.residual + column * row.pixel_stride));
        if (e.slope_after != nullptr) y = activate(y, _mm256_loadu_ps(e.slope_after));
        if (row.y != nullptr) {
            float* at = row.y + column * row.pixel_stride;
            if (whole)
                _mm256_storeu_ps(at, y);
            else
                _mm256_maskstore_ps(at, lanes, y);
        }
        if (row.bits == nullptr) continue;
        if (e.sign_scale != nullptr)
            y = _mm256_add_ps(_mm256_mul_ps(y, _mm256_loadu_ps(e.sign_scale)), _mm256_loadu_ps(e.sign_bias));
        row.bits[column * 4] = static_cast<uint8_t>(negative(y) & real);
    }
}

// Two levels of carry-save adders: with S the running sum's bits and x1, x2 two products, S + x1 + x2 is the sum
// t ^ x2 and twice the carry S & x1 | t & x2, where t = S ^ x1. Of four words only the bits that weigh four are counted.
inline __m256i add(__m256i* sum, __m256i x1, __m256i x2) {
    const __m256i t = _mm256_xor_si256(*sum, x1);
    const __m256i carry = _mm256_or_si256(_mm256_and_si256(*sum, x1), _mm256_and_si256(t, x2));
    *sum = _mm256_xor_si256(t, x2);
    return carry;
}

template <int STEP>
struct CarrySave {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = row.pixels + x * step;
        const uint32_t* weights = row.weights;
        const int32_t* offsets = row.offsets;
        __m256i ones[P], twos[P], differing[P];
        for (int p = 0; p < P; ++p) ones[p] = twos[p] = differing[p] = _mm256_setzero_si256();
        int64_t term = 0;
        const int64_t fours = row.terms / 4 * 4;
        while (term < fours) {
            const int64_t end = fours - term > kTermsBeforeOverflow ? term + kTermsBeforeOverflow : fours;
            __m256i bytes[P];
            for (int p = 0; p < P; ++p) bytes[p] = _mm256_setzero_si256();
            for (; term < end; term += 4, weights += 4 * kLanes) {
                const uint32_t* at[4];
                for (int i = 0; i < 4; ++i) at[i] = pixels + offsets[term + i];
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) {
                    const auto product = [&](int i) {
                        return _mm256_xor_si256(broadcast(at[i] + p * step), load(weights + i * kLanes));
                    };
                    const __m256i first = add(&ones[p], product(0), product(1));
                    const __m256i second = add(&ones[p], product(2), product(3));
                    bytes[p] = _mm256_add_epi8(bytes[p], count_bytes(add(&twos[p], first, second)));
                }
            }
            for (int p = 0; p < P; ++p) differing[p] = _mm256_add_epi32(differing[p], sum_bytes(bytes[p]));
        }
        for (int p = 0; p < P; ++p) {
            const __m256i two = count_bytes(twos[p]);
            const __m256i low = _mm256_add_epi8(_mm256_add_epi8(two, two), count_bytes(ones[p]));
            differing[p] = _mm256_add_epi32(_mm256_slli_epi32(differing[p], 2), sum_bytes(low));
        }
        for (; term < row.terms; ++term, weights += kLanes)
            for (int p = 0; p < P; ++p) {
                const __m256i x1 = _mm256_xor_si256(load(weights), broadcast(pixels + offsets[term] + p * step));
                differing[p] = _mm256_add_epi32(differing[p], sum_bytes(count_bytes(x1)));
            }
        finish<P>(row, x, differing);
    }
};

void row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, CarrySave<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, CarrySave<2>>(row);
    in_blocks<2, CarrySave<0>>(row);
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
const Kernels kAvx2 = {"avx2", kLanes, false, row, binarize};

}  // namespace edgefold
