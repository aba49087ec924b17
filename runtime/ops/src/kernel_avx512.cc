// For x86 with AVX-512 but without VPOPCNTDQ: bits are counted by looking up half bytes.
#include "kernel_avx512.h"

namespace edgefold {
namespace {

constexpr int kPixels = 7;  // whole rows of 7, 14, 28 pixels and more; beyond 8 the registers do not suffice
constexpr int kXor3 = 0x96;
constexpr int kMajority = 0xe8;
constexpr int kCarry = 0x3a;                      // of (t, S', S): t ? ~S' : S
constexpr int64_t kTermsBeforeOverflow = 31 * 4;  // a byte holds 31 counts of 8

inline __m512i count_bytes(__m512i x) {
    const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    return _mm512_add_epi8(_mm512_shuffle_epi8(counts, _mm512_and_si512(x, nibble)),
                           _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble)));
}

inline __m512i sum_bytes(__m512i x) {  // the four bytes of each lane
    return _mm512_madd_epi16(_mm512_maddubs_epi16(x, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
}

// Two levels of carry-save adders: of four words only the bits that weigh four are counted. With S the running sum's
// lowest bits and x1, x2 two products, S + x1 + x2 is S' = S ^ x1 ^ x2 and twice the carry t ? ~S' : S, where t = S ^
// x1; vpternlog makes t, S' and the carry in one instruction each, the products pixel ^ weight included.
template <int STEP>  // 0: as the row says
struct CarrySave {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = static_cast<const uint32_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        const int32_t* offsets = row.offsets;
        __m512i ones[P], twos[P], differing[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) ones[p] = twos[p] = differing[p] = _mm512_setzero_si512();
        int64_t term = 0;
        const int64_t fours = row.terms / 4 * 4;
        while (term < fours) {
            const int64_t end = fours - term > kTermsBeforeOverflow ? term + kTermsBeforeOverflow : fours;
            __m512i bytes[P];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) bytes[p] = _mm512_setzero_si512();
            for (; term < end; term += 4, weights += 4 * kLanes) {
                const uint32_t* at[4];
                for (int i = 0; i < 4; ++i) at[i] = pixels + offsets[term + i];
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    __m512i carry[2];
                    for (int i = 0; i < 2; ++i) {
                        const uint32_t* w = weights + 2 * i * kLanes;
                        const __m512i t = _mm512_ternarylogic_epi32(ones[p], broadcast(at[2 * i] + p * step),
                                                                    _mm512_loadu_si512(w), kXor3);
                        const __m512i next = _mm512_ternarylogic_epi32(t, broadcast(at[2 * i + 1] + p * step),
                                                                       _mm512_loadu_si512(w + kLanes), kXor3);
                        carry[i] = _mm512_ternarylogic_epi32(t, next, ones[p], kCarry);
                        ones[p] = next;
                    }
                    bytes[p] = _mm512_add_epi8(
                        bytes[p], count_bytes(_mm512_ternarylogic_epi32(twos[p], carry[0], carry[1], kMajority)));
                    twos[p] = _mm512_ternarylogic_epi32(twos[p], carry[0], carry[1], kXor3);
                }
            }
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) differing[p] = _mm512_add_epi32(differing[p], sum_bytes(bytes[p]));
        }
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            const __m512i two = count_bytes(twos[p]);
            const __m512i low = _mm512_add_epi8(_mm512_add_epi8(two, two), count_bytes(ones[p]));
            differing[p] = _mm512_add_epi32(_mm512_slli_epi32(differing[p], 2), sum_bytes(low));
        }
        for (; term < row.terms; ++term, weights += kLanes) {
            const __m512i w = _mm512_loadu_si512(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const __m512i x1 = _mm512_xor_si512(w, broadcast(pixels + offsets[term] + p * step));
                differing[p] = _mm512_add_epi32(differing[p], sum_bytes(count_bytes(x1)));
            }
        }
        __m512i sum[P];
        start<P>(row, x, sum);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sum[p] = _mm512_sub_epi32(sum[p], differing[p]);
        finish<P>(row, x, sum);
    }
};

struct Dot {
    static __m512i add(__m512i sum, __m512i w, __m512i x) { return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)); }
};

void binary_row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, CarrySave<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, CarrySave<2>>(row);
    in_blocks<4, CarrySave<0>>(row);
}

}  // namespace

extern const Kernels kAvx512;
const Kernels kAvx512 = {"avx512",        kLanes, false, binary_row, avx512_grid_row<Dot>, avx512_channelwise_row<Dot>,
                         avx512_binarize, snap,   pool};

}  // namespace edgefold
