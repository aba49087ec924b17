// Layers, prepared once when a session is created, and run on many inputs: binary ones, and real ones on a grid.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

#include "kernels.h"

namespace edgefold {

constexpr int64_t kWordBits = 32;

// Memory on cache lines: a vector that lies across two of them takes twice as long to load.
template <typename T>
struct OnCacheLines {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};

    OnCacheLines() = default;
    template <typename U>
    OnCacheLines(const OnCacheLines<U>&) {}

    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
    friend bool operator==(const OnCacheLines&, const OnCacheLines&) { return true; }
    friend bool operator!=(const OnCacheLines&, const OnCacheLines&) { return false; }
};

template <typename T>
using Lines = std::vector<T, OnCacheLines<T>>;

// Words that `channels` channels in `groups` groups take: groups never share a word.
constexpr int64_t words_of(int64_t channels, int64_t groups) {
    return groups * ((channels / groups + kWordBits - 1) / kWordBits);
}

// A convolution's form. A linear layer is a 1×1 convolution of one row, whose pixels are the batch.
struct Geometry {
    int64_t channels = 1;
    int64_t outputs = 1;
    int64_t groups = 1;
    int64_t kernel_height = 1;
    int64_t kernel_width = 1;
    int64_t stride_y = 1;
    int64_t stride_x = 1;
    int64_t dilation_y = 1;
    int64_t dilation_x = 1;
    int64_t top = 0;
    int64_t left = 0;
    int64_t bottom = 0;
    int64_t right = 0;
    int pad_value = 0;       // what stands outside the image: 0, 1 or -1; of a layer on a grid 0
    int64_t out_groups = 1;  // groups of the layer that reads the signs of the output

    int64_t output_height(int64_t height) const;
    int64_t output_width(int64_t width) const;
    int64_t input_words() const { return words_of(channels, groups); }
    int64_t output_words() const { return words_of(outputs, out_groups); }
};

// Per output channel, `outputs` values each; an empty one leaves its step out.
struct Channelwise {
    std::vector<float> scale, bias, slope, slope_after, sign_scale, sign_bias;
};

// Runs body(data, i) for every i below `count`, perhaps at once. Null `run`: one after the other.
struct ParallelFor {
    void (*run)(void* context, void (*body)(void* data, size_t i), size_t count, void* data) = nullptr;
    void* context = nullptr;

    void operator()(void (*body)(void* data, size_t i), size_t count, void* data) const {
        if (run != nullptr && count > 1) return run(context, body, count, data);
        for (size_t i = 0; i < count; ++i) body(data, i);
    }
};

// What the kinds of layers have in common: blocks of output channels, rows and threads, and what stands behind the
// sums.
class Layer {
   public:
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;

    const Geometry& geometry() const { return geometry_; }

   protected:
    // What all rows of one image have in common.
    struct Image {
        const char* cells;    // of the image with its padding
        int64_t row_bytes;    // from one row of outputs to the next
        int64_t group_bytes;  // from one group's channels to the next
        int64_t block_bytes;  // from one block's channels to the next, where every output has a channel of its own
        int64_t step;         // cells from one output to the next
        const int32_t* offsets;
        int64_t height, width;  // without the padding
        int64_t rows, columns;  // of the output
        int64_t left, right;    // columns at either side with a base of their own
        const float* residual;
        float* y;
        uint32_t* bits;

        int64_t bases() const { return 1 + left + right; }
    };

    // block_groups: groups whose outputs do not share a block.
    Layer(const Geometry& geometry, int64_t block_groups, int64_t terms, const Channelwise& channelwise,
          const Kernels& kernels, void (*row)(const Row&));
    ~Layer() = default;

    int64_t blocks() const { return block_groups_ * blocks_per_group_; }
    int64_t first_channel(int64_t block) const;
    int64_t channels_of(int64_t block) const;

    // Runs `batch` images; `cells_of(n)` gives the padded cells of one, before the first of its rows is computed.
    template <typename CellsOf>
    void run_batch(Image image, int64_t batch, const float* residual, float* y, uint32_t* out_bits,
                   const ParallelFor& parallel_for, CellsOf cells_of) const;

    // The bases of a block, for a row whose taps [top, end) lie inside: the interior's, then those of the edges.
    virtual void bases_of(const Image& image, int64_t block, int64_t top, int64_t end, int32_t* bases) const = 0;

    Geometry geometry_;
    const Kernels& kernels_;
    int64_t block_groups_;
    int64_t blocks_per_group_;  // blocks of `lanes` output channels
    int64_t terms_;             // cells, or pairs of them, that one output reads
    Lines<uint32_t> weights_;   // [block][terms][lanes], or paired

   private:
    void run_image(const Image& image, const ParallelFor& parallel_for) const;
    void run_tile(const Image& image, int64_t first_row, int64_t end_row, int64_t first_block, int64_t end_block) const;
    Row row_of(const Image& image, int64_t row, int64_t block, const int32_t* bases) const;
    void sign_image(const Image& image, uint32_t* out_bits) const;
    bool blocks_lie_on_bytes() const;

    // Where a block lies: its first channel and how many it has, its group and its place in it, and the word and byte
    // of its first sign in a pixel.
    struct Place {
        int64_t channel, channels, group, block, word, byte;
    };

    void (*row_)(const Row&);
    bool odd_;
    std::vector<Place> places_;
    Lines<float> channelwise_[6];  // [block][lanes] each, empty where the step is left out
    std::vector<float> sign_[2];   // [outputs], for signs that are not made block by block
    bool blocks_lie_on_bytes_;
};

// Products of signs.
class BinaryLayer final : public Layer {
   public:
    // weights: [outputs, kernel height, kernel width, words of a group], as ../README.md says; bits behind the last
    // channel are ignored. The geometry is valid: positive sizes, groups that divide, channels * kernel below 2^24.
    BinaryLayer(const Geometry& geometry, const uint32_t* weights, const Channelwise& channelwise,
                const Kernels& kernels);

    // bits: [batch, height, input words, width]. residual and y: [batch, output height, output width, outputs], null
    // where there is none. out_bits: [batch, output height, output words, output width], or null.
    void run(const uint32_t* bits, int64_t batch, int64_t height, int64_t width, const float* residual, float* y,
             uint32_t* out_bits, const ParallelFor& parallel_for) const;

   private:
    void bases_of(const Image& image, int64_t block, int64_t top, int64_t end, int32_t* bases) const override;

    int64_t group_words_;  // words of one group in one pixel
    Lines<int32_t> taps_;  // [block][kernel height + 1][kernel width + 1][lanes], sums over taps before
    Lines<int32_t> ones_;  // [block][lanes], twice the weights' set bits
};

// Products of integers: activations snapped to a grid of `levels` steps to either side of 0, and weights of 8 bits.
class GridLayer final : public Layer {
   public:
    // weights: [outputs, kernel height, kernel width, channels / groups].
    GridLayer(const Geometry& geometry, const int8_t* weights, float input_scale, int64_t levels,
              const Channelwise& channelwise, const Kernels& kernels);

    // x: [batch, height, width, channels]; the rest as for BinaryLayer.
    void run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual, float* y,
             uint32_t* out_bits, const ParallelFor& parallel_for) const;

   private:
    void bases_of(const Image& image, int64_t block, int64_t top, int64_t end, int32_t* bases) const override;

    float input_scale_;
    float levels_;
    bool channelwise_;
    int64_t run_;  // values that lie side by side in the image for every kernel row (and column, unless they all do)
};

}  // namespace edgefold
