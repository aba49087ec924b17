// The kernels without ONNX Runtime, beside what the processor's instructions allow: JSON on standard output.
//
// Roofline, with AVX-512 VPOPCNTDQ: multiply-accumulates a second of xor, popcount and add on registers alone (the usual
// bound, and what the kernel does), and of a carry-save adder in front of the popcount, which needs fewer instructions.
// Times are the thread's processor time; each figure is the median of `rounds` samples, all candidates taken in turn.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "layer.h"

namespace {

double thread_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Candidate {
    std::string name;
    double products;  // multiply-accumulates of one call
    std::function<void()> call;
    std::vector<double> seconds;
};

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

#if defined(__x86_64__)
constexpr int kChains = 12;
constexpr long kSteps = 20000;

// Registers only, in so many independent chains that latency does not show; asm keeps every instruction.
__attribute__((target("avx512f,avx512vpopcntdq"))) void xor_popcount_add() {
    __m512i sums[kChains] = {}, w = _mm512_set1_epi32(0x5a5a5a5a), x = _mm512_set1_epi32(0x12345678);
    for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) {
            __m512i t;
            asm volatile("vpxord %[x], %[w], %[t]\n\tvpopcntd %[t], %[t]\n\tvpaddd %[t], %[sum], %[sum]"
                         : [sum] "+v"(sums[c]), [t] "=&v"(t)
                         : [x] "v"(x), [w] "v"(w));
        }
    }
}

__attribute__((target("avx512f,avx512vpopcntdq"))) void carry_save() {
    __m512i sums[kChains] = {}, counts[kChains] = {}, w = _mm512_set1_epi32(0x5a5a5a5a);
    __m512i x = _mm512_set1_epi32(0x12345678);
    for (long i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) {
            __m512i t, next;
            asm volatile(
                "vmovdqa32 %[sum], %[t]\n\tvpternlogd $0x96, %[x], %[w], %[t]\n\tvmovdqa32 %[t], %[next]\n\t"
                "vpternlogd $0x96, %[x], %[w], %[next]\n\tvpternlogd $0x3a, %[sum], %[next], %[t]\n\t"
                "vpopcntd %[t], %[t]\n\tvpaddd %[t], %[count], %[count]\n\tvmovdqa32 %[next], %[sum]"
                : [sum] "+v"(sums[c]), [count] "+v"(counts[c]), [t] "=&v"(t), [next] "=&v"(next)
                : [x] "v"(x), [w] "v"(w));
        }
    }
}
#endif

}  // namespace

int main(int arguments, char** argument) {
    const int rounds = arguments > 1 ? std::atoi(argument[1]) : 101;
    const edgefold::Kernels* kernels = edgefold::chosen_kernels();
    if (kernels == nullptr) {
        std::fprintf(stderr, "EDGEFOLD_ISA names no kernels of this machine\n");
        return 2;
    }
    std::vector<Candidate> candidates;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vpopcntdq")) {
        candidates.push_back({"roofline: xor, popcount, add", 512.0 * kChains * kSteps, xor_popcount_add, {}});
        candidates.push_back({"roofline: carry-save", 2 * 512.0 * kChains * kSteps, carry_save, {}});
    }
#endif
    std::mt19937 random(0);
    struct Shape {
        int64_t channels, side;
    };
    for (const Shape shape : {Shape{64, 56}, Shape{128, 28}, Shape{256, 14}, Shape{512, 7}, Shape{64, 32},
                              Shape{128, 16}, Shape{256, 8}, Shape{512, 4}}) {
        edgefold::Geometry g;
        g.channels = g.outputs = shape.channels;
        g.kernel_height = g.kernel_width = 3;
        g.top = g.left = g.bottom = g.right = 1;
        const auto words = [&](int64_t count) {
            std::vector<uint32_t> all(static_cast<size_t>(count));
            for (uint32_t& word : all) word = static_cast<uint32_t>(random());
            return all;
        };
        const auto weights = words(g.outputs * 9 * g.input_words());
        const std::vector<float> ones(static_cast<size_t>(g.outputs), 1.0f);
        edgefold::Channelwise c;
        c.scale = c.bias = ones;
        auto layer = std::make_shared<edgefold::BinaryLayer>(g, weights.data(), c, *kernels);
        auto bits = std::make_shared<std::vector<uint32_t>>(words(shape.side * shape.side * g.input_words()));
        auto y = std::make_shared<edgefold::Lines<float>>(static_cast<size_t>(shape.side * shape.side * g.outputs));
        const std::string name = std::to_string(shape.channels) + "x" + std::to_string(shape.side);
        const double products = 9.0 * static_cast<double>(shape.channels * shape.channels * shape.side * shape.side);
        const int64_t side = shape.side;
        candidates.push_back({"conv " + name + ", real output",
                              products,
                              [=] { layer->run(bits->data(), 1, side, side, nullptr, y->data(), nullptr, {}); },
                              {}});
        auto out = std::make_shared<std::vector<uint32_t>>(static_cast<size_t>(side * side * g.output_words()));
        candidates.push_back({"conv " + name + ", binary output",
                              products,
                              [=] { layer->run(bits->data(), 1, side, side, nullptr, nullptr, out->data(), {}); },
                              {}});
        auto signs = std::make_shared<std::vector<uint32_t>>(static_cast<size_t>(side * side * g.output_words()));
        candidates.push_back({"binarize " + name,
                              0,
                              [=] {
                                  for (int64_t row = 0; row < side; ++row)
                                      kernels->binarize({y->data() + row * side * g.outputs, side, g.outputs, 1,
                                                         nullptr, nullptr,
                                                         signs->data() + row * side * g.output_words()});
                              },
                              {}});
    }
    for (int round = 0; round < rounds + 3; ++round)
        for (Candidate& each : candidates) {
            const double start = thread_seconds();
            each.call();
            if (round >= 3) each.seconds.push_back(thread_seconds() - start);
        }
    std::printf("{\"kernels\": \"%s\", \"rounds\": %d, \"median_seconds\": {", kernels->name, rounds);
    for (size_t i = 0; i < candidates.size(); ++i)
        std::printf("%s\n  \"%s\": {\"seconds\": %.9f, \"products\": %.0f}", i != 0 ? "," : "",
                    candidates[i].name.c_str(), median(candidates[i].seconds), candidates[i].products);
    std::printf("\n}}\n");
}
