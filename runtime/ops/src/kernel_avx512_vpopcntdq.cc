// For x86 with AVX-512 and VPOPCNTDQ, which counts the bits of sixteen words at once.
#include "kernel_avx512.h"

namespace edgefold {
namespace {

// Pixels at once: each holds a sum and a count, which with the two weights and two temporaries fills 32 registers.
constexpr int kPixels = 14;

template <int STEP>  // 0: as the row says
struct CarrySave {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = row.pixels + x * step;
        const uint32_t* weights = row.weights;
        const int32_t* offsets = row.offsets;
        __m512i sum[P], carries[P];
        for (int p = 0; p < P; ++p) sum[p] = carries[p] = _mm512_setzero_si512();
        int64_t term = 0;
        for (; term + 2 <= row.terms; term += 2, weights += 2 * kLanes) {
            const uint32_t* first = pixels + offsets[term];
            const uint32_t* second = pixels + offsets[term + 1];
            const __m512i w1 = _mm512_loadu_si512(weights), w2 = _mm512_loadu_si512(weights + kLanes);
#pragma GCC unroll 14
            for (int p = 0; p < P; ++p) {
                const __m512i t = _mm512_ternarylogic_epi32(sum[p], w1, broadcast(first + p * step), kXor3);
                const __m512i next = _mm512_ternarylogic_epi32(t, w2, broadcast(second + p * step), kXor3);
                const __m512i carry = _mm512_ternarylogic_epi32(t, next, sum[p], kCarry);
                sum[p] = next;
                carries[p] = _mm512_add_epi32(carries[p], _mm512_popcnt_epi32(carry));
            }
        }
        for (int p = 0; p < P; ++p)
            carries[p] = _mm512_add_epi32(_mm512_add_epi32(carries[p], carries[p]), _mm512_popcnt_epi32(sum[p]));
        if (term < row.terms) {
            const __m512i w = _mm512_loadu_si512(weights);
            for (int p = 0; p < P; ++p) {
                const __m512i x1 = _mm512_xor_si512(w, broadcast(pixels + offsets[term] + p * step));
                carries[p] = _mm512_add_epi32(carries[p], _mm512_popcnt_epi32(x1));
            }
        }
        finish<P>(row, x, carries);
    }
};

void row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, CarrySave<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, CarrySave<2>>(row);
    in_blocks<4, CarrySave<0>>(row);
}

}  // namespace

extern const Kernels kAvx512Vpopcntdq;
const Kernels kAvx512Vpopcntdq = {"avx512_vpopcntdq", kLanes, false, row, avx512_binarize};

}  // namespace edgefold
