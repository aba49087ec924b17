// Random layers, signs and poolings on every instruction set of this machine, against naive loops.
//
//     test_layers [CASES [SEED]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "naive.h"

namespace {

using namespace edgefold;

void check_layer(Random& random, const Kernels* const* kernels, size_t count, bool grid) {
    const Case c = random_case(random, grid);
    const Outputs expected = naive_outputs(c);
    for (size_t i = 0; i < count; ++i) {
        const AnyLayer layer(c, *kernels[i]);
        compare(c, expected, layer.run(c, true, true), kernels[i]->name);
        compare(c, expected, layer.run(c, true, false), kernels[i]->name);
        compare(c, expected, layer.run(c, false, true), kernels[i]->name);
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
            if (!(y >= 0))
                expected[static_cast<size_t>(word * pixels + pixel)] |= uint32_t{1} << channel % per_group % 32;
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

void check_pooling(Random& random, const Kernels* const* kernels, size_t count) {
    Pooling p;
    p.mean = between(random, 0, 1) != 0;
    p.channels = between(random, 1, 70);
    p.height = between(random, 1, 9);
    p.width = between(random, 1, 9);
    p.window_height = between(random, 1, p.mean ? p.height : 5);
    p.window_width = between(random, 1, p.mean ? p.width : 5);
    p.stride = between(random, 1, 4);
    // A mean takes no padding; a maximum less than its window.
    const int64_t padding = p.mean ? 0 : between(random, 0, p.window_width - 1);
    const int64_t room = p.width + padding - p.window_width;  // padded at the left only, or the last windows shrink
    p.left = -padding;
    p.columns = room < 0 ? 1 : room / p.stride + 1;
    p.top =
        p.mean ? between(random, 0, p.height - p.window_height) : between(random, 1 - p.window_height, p.height - 1);
    std::vector<float> image = random_floats(random, p.height * p.width * p.channels, p.mean);
    const float share = 1.0f / static_cast<float>(p.window_height * p.window_width);
    std::vector<float> expected;
    for (int64_t column = 0; column < p.columns; ++column)
        for (int64_t channel = 0; channel < p.channels; ++channel) {
            float sum = 0, most = -std::numeric_limits<float>::infinity();
            bool first = true;
            for (int64_t i = 0; i < p.window_height * p.window_width; ++i) {
                const int64_t row = p.top + i / p.window_width, at = p.left + column * p.stride + i % p.window_width;
                if (row < 0 || row >= p.height || at < 0 || at >= p.width) continue;
                const float x = image[static_cast<size_t>((row * p.width + at) * p.channels + channel)];
                sum = first ? x : rounded(sum + x);
                most = std::max(most, x);
                first = false;
            }
            expected.push_back(p.mean ? rounded(sum * share) : most);
        }
    for (size_t i = 0; i < count; ++i) {
        Guarded<float> in(image), out(expected.size(), 0.5f);
        p.image = in.data();
        p.y = out.data();
        kernels[i]->pool(p);
        const std::vector<float> came = out.values();
        for (size_t at = 0; at < came.size(); ++at)
            if (!same(came[at], expected[at])) {
                std::fprintf(stderr, "%s: %s of %lldx%lld windows: Y[%zu] is %.9g, expected %.9g\n", kernels[i]->name,
                             p.mean ? "mean" : "maximum", static_cast<long long>(p.window_height),
                             static_cast<long long>(p.window_width), at, static_cast<double>(came[at]),
                             static_cast<double>(expected[at]));
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
        check_layer(random, kernels, count, false);
        check_layer(random, kernels, count, true);
        check_pooling(random, kernels, count);
        check_signs(random, kernels, count);
    }
    std::printf("%lld cases equal on", static_cast<long long>(cases));
    for (size_t i = 0; i < count; ++i) std::printf(" %s", kernels[i]->name);
    std::printf("\n");
}
