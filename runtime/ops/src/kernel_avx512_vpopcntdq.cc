// For x86 with AVX-512, VPOPCNTDQ, which counts the bits of sixteen words at once, and VNNI.
//
// Three instructions a word: xor with a broadcast from memory, popcount, subtract. A carry-save adder in vpternlog
// would take five for two words, and was measured to be slower (Zen 4): its three operands do not issue at the full
// rate.
#include "kernel_avx512.h"

namespace edgefold {
namespace {

constexpr int kPixels = 14;  // whole rows of 7, 14, 28, 56, 112 and 224 pixels, and chains enough to hide latency

template <int STEP>  // 0: as the row says
struct Popcount {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = static_cast<const uint32_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        __m512i sum[P];
        start<P>(row, x, sum);
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const uint32_t* words = pixels + row.offsets[term];
            const __m512i w = _mm512_loadu_si512(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p)
                sum[p] =
                    _mm512_sub_epi32(sum[p], _mm512_popcnt_epi32(_mm512_xor_si512(w, broadcast(words + p * step))));
        }
        finish<P>(row, x, sum);
    }
};

struct Dot {
    static __m512i add(__m512i sum, __m512i w, __m512i x) { return _mm512_dpwssd_epi32(sum, w, x); }
};

void binary_row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, Popcount<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, Popcount<2>>(row);
    in_blocks<4, Popcount<0>>(row);
}

}  // namespace

extern const Kernels kAvx512Vpopcntdq;
const Kernels kAvx512Vpopcntdq = {"avx512_vpopcntdq",          kLanes,          false, binary_row, avx512_grid_row<Dot>,
                                  avx512_channelwise_row<Dot>, avx512_binarize, snap,  pool};

}  // namespace edgefold
