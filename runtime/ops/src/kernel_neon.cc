// For ARM with NEON: one output channel a 32-bit lane of two 128-bit registers; vcnt counts the bits of bytes.
#include <arm_neon.h>

#include <cstring>

#include "blocks.h"
#include "loops.h"

namespace edgefold {
namespace {

constexpr int64_t kLanes = 8;
constexpr int kHalves = 2;
constexpr int kPixels = 7;  // two counts each: with the weights and temporaries most of the 32 registers
constexpr int64_t kTermsBeforeOverflow = 31;  // a byte holds 31 counts of 8

inline const int32_t* base_of(const Row& row, int64_t column) {
    const int64_t behind = column - (row.width - row.right);
    return column < row.left ? row.edges + column * kLanes
           : behind >= 0     ? row.edges + (row.left + behind) * kLanes
                             : row.interior;
}

// Four floats of which only `count` may be read.
inline float32x4_t read(const float* from, int64_t count) {
    if (count >= 4) return vld1q_f32(from);
    float values[4] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[i];
    return vld1q_f32(values);
}

inline void write(float* to, float32x4_t x, int64_t count) {
    if (count >= 4) return vst1q_f32(to, x);
    float values[4];
    vst1q_f32(values, x);
    for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

inline float32x4_t activate(float32x4_t y, const float* slope) {
    const uint32x4_t below = vcltq_f32(y, vdupq_n_f32(0.0f));
    return vbslq_f32(below, vmulq_f32(y, vld1q_f32(slope)), y);
}

// The signs of four floats as bits; of NaN, too.
inline unsigned negative(float32x4_t y) {
    static const uint32_t place[4] = {1, 2, 4, 8};
    const uint32x4_t minus = vmvnq_u32(vcgeq_f32(y, vdupq_n_f32(0.0f)));
    return vaddvq_u32(vandq_u32(minus, vld1q_u32(place)));
}

// What stands behind the sums of the pixels x .. x + P - 1.
template <int P>
inline void finish(const Row& row, int64_t x, const int32x4_t (&sums)[P][kHalves]) {
    const Epilogue& e = row.epilogue;
    for (int p = 0; p < P; ++p) {
        const int64_t at = (x + p) * row.pixel_stride;
        unsigned bits = 0;
        for (int half = 0; half < kHalves; ++half) {
            const int64_t first = 4 * half, count = row.channels - first;
            if (count <= 0) break;
            const float32x4_t sum = vcvtq_f32_s32(sums[p][half]);
            float32x4_t y = vaddq_f32(vmulq_f32(sum, vld1q_f32(e.scale + first)), vld1q_f32(e.bias + first));
            if (e.slope != nullptr) y = activate(y, e.slope + first);
            if (row.residual != nullptr) y = vaddq_f32(y, read(row.residual + at + first, count));
            if (e.slope_after != nullptr) y = activate(y, e.slope_after + first);
            if (row.y != nullptr) write(row.y + at + first, y, count);
            if (row.bits == nullptr) continue;
            if (e.sign_scale != nullptr)
                y = vaddq_f32(vmulq_f32(y, vld1q_f32(e.sign_scale + first)), vld1q_f32(e.sign_bias + first));
            bits |= negative(y) << first;
        }
        if (row.bits != nullptr) row.bits[(x + p) * 4] = static_cast<uint8_t>(bits & ((1u << row.channels) - 1u));
    }
}

template <int STEP>  // 0: as the row says
struct Popcount {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int64_t step = STEP == 0 ? row.step : STEP;
        const uint32_t* pixels = static_cast<const uint32_t*>(row.cells) + x * step;
        const uint32_t* weights = row.weights;
        uint32x4_t differing[P][kHalves];
        for (int p = 0; p < P; ++p)
            for (int half = 0; half < kHalves; ++half) differing[p][half] = vdupq_n_u32(0);
        for (int64_t term = 0; term < row.terms;) {
            const int64_t end = row.terms - term > kTermsBeforeOverflow ? term + kTermsBeforeOverflow : row.terms;
            uint8x16_t bytes[P][kHalves];
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) bytes[p][0] = bytes[p][1] = vdupq_n_u8(0);
            for (; term < end; ++term, weights += kLanes) {
                const uint32_t* words = pixels + row.offsets[term];
                const uint32x4_t w0 = vld1q_u32(weights), w1 = vld1q_u32(weights + 4);
#pragma GCC unroll 16
                for (int p = 0; p < P; ++p) {
                    const uint32x4_t word = vld1q_dup_u32(words + p * step);
                    bytes[p][0] = vaddq_u8(bytes[p][0], vcntq_u8(vreinterpretq_u8_u32(veorq_u32(w0, word))));
                    bytes[p][1] = vaddq_u8(bytes[p][1], vcntq_u8(vreinterpretq_u8_u32(veorq_u32(w1, word))));
                }
            }
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p)
                for (int half = 0; half < kHalves; ++half)
                    differing[p][half] = vpadalq_u16(differing[p][half], vpaddlq_u8(bytes[p][half]));
        }
        int32x4_t sums[P][kHalves];
        for (int p = 0; p < P; ++p)
            for (int half = 0; half < kHalves; ++half) {
                const int32x4_t minus = vreinterpretq_s32_u32(vshlq_n_u32(differing[p][half], 1));
                sums[p][half] = vsubq_s32(vld1q_s32(base_of(row, x + p) + 4 * half), minus);
            }
        finish<P>(row, x, sums);
    }
};

// Products on a grid.
struct GridProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        int32x4_t sums[P][kHalves];
        for (int p = 0; p < P; ++p) sums[p][0] = sums[p][1] = vdupq_n_s32(0);
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pairs = cells + row.offsets[term];
            const int16x8_t w0 = vreinterpretq_s16_u32(vld1q_u32(weights));
            const int16x8_t w1 = vreinterpretq_s16_u32(vld1q_u32(weights + 4));
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                uint32_t pair;
                std::memcpy(&pair, pairs + p * row.step, sizeof pair);
                const int16x8_t x1 = vreinterpretq_s16_u32(vdupq_n_u32(pair));
                const auto dot = [&](int16x8_t w) {
                    return vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(x1)), vmull_high_s16(w, x1));
                };
                sums[p][0] = vaddq_s32(sums[p][0], dot(w0));
                sums[p][1] = vaddq_s32(sums[p][1], dot(w1));
            }
        }
        finish<P>(row, x, sums);
    }
};

// The same channel by channel.
struct ChannelProducts {
    template <int P>
    static void run(const Row& row, int64_t x) {
        const int16_t* cells = static_cast<const int16_t*>(row.cells) + x * row.step;
        const uint32_t* weights = row.weights;
        int32x4_t sums[P][kHalves];
        for (int p = 0; p < P; ++p) sums[p][0] = sums[p][1] = vdupq_n_s32(0);
        for (int64_t term = 0; term < row.terms; ++term, weights += kLanes) {
            const int16_t* pixels = cells + row.offsets[term];
            const int16x4_t w0 = vmovn_s32(vreinterpretq_s32_u32(vld1q_u32(weights)));
            const int16x4_t w1 = vmovn_s32(vreinterpretq_s32_u32(vld1q_u32(weights + 4)));
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const int16x8_t values = vld1q_s16(pixels + p * row.step);
                sums[p][0] = vmlal_s16(sums[p][0], vget_low_s16(values), w0);
                sums[p][1] = vmlal_s16(sums[p][1], vget_high_s16(values), w1);
            }
        }
        finish<P>(row, x, sums);
    }
};

void channelwise_row(const Row& row) { in_blocks<4, ChannelProducts>(row); }

void grid_row(const Row& row) { in_blocks<4, GridProducts>(row); }

void binary_row(const Row& row) {
    if (row.step == 1) return in_blocks<kPixels, Popcount<1>>(row);
    if (row.step == 2) return in_blocks<kPixels, Popcount<2>>(row);
    in_blocks<4, Popcount<0>>(row);
}

void binarize(const Signs& signs) {
    const int64_t per_group = signs.channels / signs.groups, group_words = (per_group + 31) / 32;
    for (int64_t group = 0; group < signs.groups; ++group)
        for (int64_t word = 0; word < group_words; ++word) {
            const int64_t first = group * per_group + word * 32;
            const int64_t count = per_group - word * 32 < 32 ? per_group - word * 32 : 32;
            uint32_t* words = signs.words + (group * group_words + word) * signs.pixels;
            for (int64_t pixel = 0; pixel < signs.pixels; ++pixel) {
                const float* x = signs.x + pixel * signs.channels + first;
                uint32_t bits = 0;
                for (int64_t i = 0; i < count; i += 4) {
                    const int64_t some = count - i;
                    float32x4_t y = read(x + i, some);
                    if (signs.scale != nullptr)
                        y = vaddq_f32(vmulq_f32(y, read(signs.scale + first + i, some)),
                                      read(signs.bias + first + i, some));
                    const unsigned real = some >= 4 ? 15u : (1u << some) - 1u;
                    bits |= static_cast<uint32_t>(negative(y) & real) << i;
                }
                words[pixel] = bits;
            }
        }
}

}  // namespace

extern const Kernels kNeon;
const Kernels kNeon = {"neon", kLanes, false, binary_row, grid_row, channelwise_row, binarize, snap, pool};

}  // namespace edgefold
