// Random layers and signs on every instruction set of this machine, against naive loops.
//
//     test_layers [CASES [SEED]]
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "naive.h"

namespace {

using namespace edgefold;

void check_layer(Random& random, const Kernels* const* kernels, size_t count) {
    const Case c = random_case(random);
    const Outputs expected = naive_outputs(c);
    for (size_t i = 0; i < count; ++i) {
        const Layer layer(c.geometry, c.weights.data(), c.channelwise, *kernels[i]);
        compare(c, expected, run_layer(layer, c, true, true), kernels[i]->name);
        compare(c, expected, run_layer(layer, c, true, false), kernels[i]->name);
        compare(c, expected, run_layer(layer, c, false, true), kernels[i]->name);
    }
}

void check_signs(Random& random, const Kernels* const* kernels, size_t count) {
    const int64_t groups = between(random, 1, 4), pixels = between(random, 1, 40);
    const int64_t per_group = between(random, 1, 100), channels = groups * per_group;
    const int64_t group_words = (per_group + 31) / 32;
    const std::vector<float> x = random_floats(random, pixels * channels, true);
    const std::vector<float> scale = random_floats(random, channels), bias = random_floats(random, channels);
    const bool affine = between(random, 0, 1) != 0;
    std::vector<uint32_t> expected(static_cast<size_t>(groups * group_words * pixels));
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
        for (int64_t channel = 0; channel < channels; ++channel) {
            const size_t at = static_cast<size_t>(channel);
            float y = x[static_cast<size_t>(pixel * channels + channel)];
            if (affine) y = rounded(rounded(y * scale[at]) + bias[at]);
            const int64_t word = channel / per_group * group_words + channel % per_group / 32;
            if (!(y >= 0)) expected[static_cast<size_t>(word * pixels + pixel)] |= uint32_t{1} << channel % per_group % 32;
        }
    for (size_t i = 0; i < count; ++i) {
        Guarded<float> in(x), by(scale), plus(bias);
        Guarded<uint32_t> came(expected.size(), 0xa5a5a5a5u);
        kernels[i]->binarize({in.data(), pixels, channels, groups, affine ? by.data() : nullptr,
                              affine ? plus.data() : nullptr, came.data()});
        if (came.values() != expected) {
            std::fprintf(stderr, "%s: signs of %lld pixels, %lld channels, %lld groups differ\n", kernels[i]->name,
                         static_cast<long long>(pixels), static_cast<long long>(channels),
                         static_cast<long long>(groups));
            std::exit(1);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 500;
    Random random(argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 0);
    size_t count = 0;
    const Kernels* const* kernels = available_kernels(&count);
    for (int64_t i = 0; i < cases; ++i) {
        check_layer(random, kernels, count);
        check_signs(random, kernels, count);
    }
    std::printf("%lld cases equal on", static_cast<long long>(cases));
    for (size_t i = 0; i < count; ++i) std::printf(" %s", kernels[i]->name);
    std::printf("\n");
}
