// Random layers, and what they must give by a loop over everything: no table, no packing, no second thought.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "layer.h"

namespace edgefold {

using Random = std::mt19937_64;

inline int64_t between(Random& random, int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
}

struct Case {
    Geometry geometry;
    int64_t batch = 1, height = 1, width = 1;
    // Of a binary layer.
    std::vector<uint32_t> weights, bits;
    // Of a layer on a grid, which has levels.
    std::vector<int8_t> factors;
    std::vector<float> x;
    float input_scale = 1;
    int64_t levels = 0;

    Channelwise channelwise;
    std::vector<float> residual;  // empty: none

    int64_t rows() const { return geometry.output_height(height); }
    int64_t columns() const { return geometry.output_width(width); }
    std::string in_words() const {
        const Geometry& g = geometry;
        char text[400];
        std::snprintf(
            text, sizeof text,
            "%s %lldx%lldx%lldx%lld -> %lld, kernel %lldx%lld, strides %lldx%lld, dilations %lldx%lld, pads %lld "
            "%lld %lld %lld with %d, groups %lld and %lld",
            levels != 0 ? "grid" : "binary", (long long)batch, (long long)height, (long long)width,
            (long long)g.channels, (long long)g.outputs, (long long)g.kernel_height, (long long)g.kernel_width,
            (long long)g.stride_y, (long long)g.stride_x, (long long)g.dilation_y, (long long)g.dilation_x,
            (long long)g.top, (long long)g.left, (long long)g.bottom, (long long)g.right, g.pad_value,
            (long long)g.groups, (long long)g.out_groups);
        return text;
    }
};

// Bits of words, those behind a group's last channel zero in inputs. Some words are all ones, or all zeros.
inline std::vector<uint32_t> random_words(Random& random, int64_t count) {
    std::vector<uint32_t> words(static_cast<size_t>(count));
    for (uint32_t& word : words) {
        const int64_t kind = between(random, 0, 9);
        word = kind == 0 ? 0 : kind == 1 ? ~uint32_t{0} : static_cast<uint32_t>(random());
    }
    return words;
}

inline std::vector<float> random_floats(Random& random, int64_t count, bool odd_ones = false) {
    constexpr float kOdd[] = {0.0f, -0.0f, std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values)
        value = odd_ones && between(random, 0, 7) == 0 ? kOdd[between(random, 0, 4)] : normal(random);
    return values;
}

inline uint32_t tail_mask(int64_t channels, int64_t word) {
    const int64_t left = channels - word * 32;
    return left >= 32 ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
}

inline int64_t divisor_of(Random& random, int64_t value, int64_t most) {
    std::vector<int64_t> found;
    for (int64_t d = 1; d <= most && d <= value; ++d)
        if (value % d == 0) found.push_back(d);
    return found[static_cast<size_t>(between(random, 0, static_cast<int64_t>(found.size()) - 1))];
}

constexpr int64_t kMostSum = int64_t{1} << 24;

inline Case random_case(Random& random, bool grid) {
    Case c;
    Geometry& g = c.geometry;
    const bool linear = !grid && between(random, 0, 9) == 0;
    g.groups = linear ? 1 : between(random, 0, 2) != 0 ? 1 : between(random, 2, 6);
    g.channels = g.groups * between(random, 1, between(random, 0, 3) == 0 ? 520 / g.groups : 40);
    g.outputs = g.groups * between(random, 1, between(random, 0, 3) == 0 ? 80 : 20);
    g.out_groups = divisor_of(random, g.outputs, 8);
    c.batch = between(random, 1, 5);
    if (linear) {
        c.width = c.batch;
        c.batch = 1;
    } else {
        g.kernel_height = between(random, 1, 7);
        g.kernel_width = between(random, 1, 7);
        g.stride_y = between(random, 1, 3);
        g.stride_x = between(random, 1, 3);
        g.dilation_y = between(random, 1, 3);
        g.dilation_x = between(random, 1, 3);
        const int64_t most =
            between(random, 0, 3) == 0 ? 0 : 9;  // also wider than the kernel: outputs of padding alone
        g.top = between(random, 0, most);
        g.left = between(random, 0, most);
        g.bottom = between(random, 0, most);
        g.right = between(random, 0, most);
        g.pad_value = grid ? 0 : static_cast<int>(between(random, -1, 1));
        do {
            c.height = between(random, 1, 12);
            c.width = between(random, 1, 20);
            if (c.rows() < 1) g.bottom += 3;
            if (c.columns() < 1) g.right += 3;
        } while (c.rows() < 1 || c.columns() < 1);
    }
    if (grid) {
        // Levels and weights as large as the sum allows: its bound is what keeps every partial sum exact.
        const int64_t products = g.kernel_height * g.kernel_width * (g.channels / g.groups);
        const int64_t most = std::min<int64_t>(127, (kMostSum - 1) / products);
        c.levels = between(random, 1, std::min<int64_t>(32767, (kMostSum - 1) / (products * most)));
        c.input_scale = std::ldexp(1.0f, static_cast<int>(between(random, -2, 8)));
        c.factors.resize(static_cast<size_t>(g.outputs * products));
        for (int8_t& factor : c.factors) factor = static_cast<int8_t>(between(random, -most, most));
        c.x = random_floats(random, c.batch * c.height * c.width * g.channels, true);
        const float spread = static_cast<float>(c.levels) / c.input_scale;
        for (float& value : c.x) value *= between(random, 0, 3) == 0 ? 4 * spread : spread;
    } else {
        const int64_t group_words = g.input_words() / g.groups;
        c.weights = random_words(random, g.outputs * g.kernel_height * g.kernel_width * group_words);
        c.bits = random_words(random, c.batch * c.height * g.input_words() * c.width);
        for (size_t i = 0; i < c.bits.size(); ++i) {
            const int64_t word = static_cast<int64_t>(i) / c.width % g.input_words() % group_words;
            c.bits[i] &= tail_mask(g.channels / g.groups, word);
        }
    }
    c.channelwise.scale = random_floats(random, g.outputs);
    c.channelwise.bias = random_floats(random, g.outputs);
    if (between(random, 0, 1) != 0) c.channelwise.slope = random_floats(random, g.outputs);
    if (between(random, 0, 2) == 0) c.channelwise.slope_after = random_floats(random, g.outputs);
    if (between(random, 0, 1) != 0) {
        c.channelwise.sign_scale = random_floats(random, g.outputs);
        c.channelwise.sign_bias = random_floats(random, g.outputs);
    }
    if (between(random, 0, 1) != 0)
        c.residual = random_floats(random, c.batch * c.rows() * c.columns() * g.outputs, true);
    return c;
}

struct Outputs {
    std::vector<float> y;
    std::vector<uint32_t> bits;
};

// Kept out of line and unfused, so that each step is rounded as the operator's description says.
inline float rounded(float value) {
    volatile float kept = value;
    return kept;
}

inline Outputs naive_outputs(const Case& c) {
    const Geometry& g = c.geometry;
    const int64_t group_channels = g.channels / g.groups, group_words = g.input_words() / g.groups;
    const int64_t rows = c.rows(), columns = c.columns(), group_outputs = g.outputs / g.groups;
    Outputs out;
    out.y.resize(static_cast<size_t>(c.batch * rows * columns * g.outputs));
    out.bits.resize(static_cast<size_t>(c.batch * rows * g.output_words() * columns));
    const auto input = [&](int64_t n, int64_t row, int64_t column, int64_t group, int64_t channel) -> int64_t {
        if (row < 0 || row >= c.height || column < 0 || column >= c.width) return g.pad_value;
        if (c.levels != 0) {
            const int64_t pixel = (n * c.height + row) * c.width + column;
            const float x = c.x[static_cast<size_t>(pixel * g.channels + group * group_channels + channel)];
            const float most = static_cast<float>(c.levels), q = rounded(x * c.input_scale);
            return std::isnan(q) ? -c.levels
                                 : static_cast<int64_t>(std::nearbyint(std::fmin(std::fmax(q, -most), most)));
        }
        const int64_t word = group * group_words + channel / 32;
        const uint32_t bits =
            c.bits[static_cast<size_t>(((n * c.height + row) * g.input_words() + word) * c.width + column)];
        return (bits >> channel % 32 & 1u) != 0 ? -1 : 1;
    };
    const auto weight = [&](int64_t o, int64_t ky, int64_t kx, int64_t channel) -> int64_t {
        const int64_t tap = (o * g.kernel_height + ky) * g.kernel_width + kx;
        if (c.levels != 0) return c.factors[static_cast<size_t>(tap * group_channels + channel)];
        const uint32_t bits = c.weights[static_cast<size_t>(tap * group_words + channel / 32)];
        return (bits >> channel % 32 & 1u) != 0 ? -1 : 1;
    };
    for (int64_t n = 0; n < c.batch; ++n)
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
                for (int64_t o = 0; o < g.outputs; ++o) {
                    int64_t sum = 0;
                    for (int64_t ky = 0; ky < g.kernel_height; ++ky)
                        for (int64_t kx = 0; kx < g.kernel_width; ++kx)
                            for (int64_t i = 0; i < group_channels; ++i)
                                sum += input(n, row * g.stride_y - g.top + ky * g.dilation_y,
                                             column * g.stride_x - g.left + kx * g.dilation_x, o / group_outputs, i) *
                                       weight(o, ky, kx, i);
                    const size_t at = static_cast<size_t>(((n * rows + row) * columns + column) * g.outputs + o);
                    const size_t channel = static_cast<size_t>(o);
                    const Channelwise& steps = c.channelwise;
                    float y = rounded(rounded(static_cast<float>(sum) * steps.scale[channel]) + steps.bias[channel]);
                    if (!steps.slope.empty() && y < 0) y = rounded(y * steps.slope[channel]);
                    if (!c.residual.empty()) y = rounded(y + c.residual[at]);
                    if (!steps.slope_after.empty() && y < 0) y = rounded(y * steps.slope_after[channel]);
                    out.y[at] = y;
                    if (!steps.sign_scale.empty())
                        y = rounded(rounded(y * steps.sign_scale[channel]) + steps.sign_bias[channel]);
                    if (!(y >= 0)) {
                        const int64_t per_group = g.outputs / g.out_groups, within = o % per_group;
                        const int64_t word = o / per_group * (g.output_words() / g.out_groups) + within / 32;
                        out.bits[static_cast<size_t>(((n * rows + row) * g.output_words() + word) * columns +
                                                     column)] |= uint32_t{1} << within % 32;
                    }
                }
    return out;
}

inline bool same(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    return a == b && std::signbit(a) == std::signbit(b);
}

inline void compare(const Case& c, const Outputs& expected, const Outputs& came, const char* what) {
    for (size_t i = 0; i < came.y.size(); ++i)
        if (!same(came.y[i], expected.y[i])) {
            std::fprintf(stderr, "%s: Y[%zu] is %.9g, expected %.9g: %s\n", what, i, static_cast<double>(came.y[i]),
                         static_cast<double>(expected.y[i]), c.in_words().c_str());
            std::exit(1);
        }
    for (size_t i = 0; i < came.bits.size(); ++i)
        if (came.bits[i] != expected.bits[i]) {
            std::fprintf(stderr, "%s: B[%zu] is %08x, expected %08x: %s\n", what, i, came.bits[i], expected.bits[i],
                         c.in_words().c_str());
            std::exit(1);
        }
}

// Memory that ends where a page begins that must not be touched: sanitizers do not see what vector instructions read.
template <typename T>
class Guarded {
   public:
    Guarded(size_t count, T value) : count_(count) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t used = (count * sizeof(T) + page - 1) / page * page;
        size_ = used + page;
        void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + used, page, PROT_NONE) != 0) std::abort();
        memory_ = memory;
        data_ = reinterpret_cast<T*>(static_cast<char*>(memory) + used) - count;
        for (size_t i = 0; i < count; ++i) data_[i] = value;
    }
    explicit Guarded(const std::vector<T>& values) : Guarded(values.size(), T{}) {
        for (size_t i = 0; i < count_; ++i) data_[i] = values[i];
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { munmap(memory_, size_); }

    T* data() { return count_ == 0 ? nullptr : data_; }
    std::vector<T> values() const { return {data_, data_ + count_}; }

   private:
    void* memory_;
    size_t size_, count_;
    T* data_;
};

// A layer of either kind, on memory of exactly the size that is needed.
class AnyLayer {
   public:
    AnyLayer(const Case& c, const Kernels& kernels) {
        if (c.levels != 0)
            grid_ = std::make_unique<GridLayer>(c.geometry, c.factors.data(), c.input_scale, c.levels, c.channelwise,
                                                kernels);
        else
            binary_ = std::make_unique<BinaryLayer>(c.geometry, c.weights.data(), c.channelwise, kernels);
    }

    Outputs run(const Case& c, bool want_y, bool want_bits, const ParallelFor& parallel_for = {}) const {
        const int64_t pixels = c.batch * c.rows() * c.columns();
        Guarded<uint32_t> in(c.bits);
        Guarded<float> x(c.x), residual(c.residual);
        Guarded<float> y(want_y ? static_cast<size_t>(pixels * c.geometry.outputs) : 0, 0.5f);
        Guarded<uint32_t> bits(want_bits ? static_cast<size_t>(pixels * c.geometry.output_words()) : 0, 0xa5a5a5a5u);
        if (grid_ != nullptr)
            grid_->run(x.data(), c.batch, c.height, c.width, residual.data(), y.data(), bits.data(), parallel_for);
        else
            binary_->run(in.data(), c.batch, c.height, c.width, residual.data(), y.data(), bits.data(), parallel_for);
        return {y.values(), bits.values()};
    }

   private:
    std::unique_ptr<BinaryLayer> binary_;
    std::unique_ptr<GridLayer> grid_;
};

}  // namespace edgefold
