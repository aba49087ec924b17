#include "layer.h"

#include <algorithm>
#include <cstring>

namespace edgefold {
namespace {

// Beyond this, the weights of all blocks do not stay in the first-level cache while a row is computed.
constexpr int64_t kWeightBytesOfARow = 16 * 1024;

// Enough that threads share evenly, and each worth handing over.
constexpr int64_t kMostTiles = 8;
constexpr int64_t kLeastTermsOfATile = 16 * 1024;

int64_t output_size(int64_t size, int64_t before, int64_t behind, int64_t kernel, int64_t dilation, int64_t stride) {
    const int64_t room = size + before + behind - (dilation * (kernel - 1) + 1);
    return room < 0 ? 0 : room / stride + 1;
}

int bit_count(uint32_t word) {
    int count = 0;
    for (; word != 0; word &= word - 1) ++count;
    return count;
}

// The bits of word `word` of a group of `channels` channels that stand for channels.
uint32_t mask_of(int64_t channels, int64_t word) {
    const int64_t left = channels - word * kWordBits;
    return left >= kWordBits ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
}

// The taps [first, end) of a kernel that lie inside the image where output `position` is computed.
struct Taps {
    int64_t first;
    int64_t end;
    bool operator!=(const Taps& other) const { return first != other.first || end != other.end; }
};

Taps taps_inside(int64_t position, int64_t stride, int64_t before, int64_t dilation, int64_t kernel, int64_t size) {
    const int64_t start = position * stride - before;  // where tap 0 lies
    if (dilation == 1) {                               // without divisions
        const int64_t first = std::clamp(-start, int64_t{0}, kernel);
        return {first, std::max(first, std::min(kernel, size - start))};
    }
    const int64_t first = start >= 0 ? 0 : std::min(kernel, (-start + dilation - 1) / dilation);
    const int64_t end = start >= size ? first : std::min(kernel, (size - 1 - start) / dilation + 1);
    return {first, std::max(first, end)};
}

// Grows and never shrinks, so that the steady state allocates nothing.
template <typename T>
T* scratch(Lines<T>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
    return buffer.data();
}

}  // namespace

int64_t Geometry::output_height(int64_t height) const {
    return output_size(height, top, bottom, kernel_height, dilation_y, stride_y);
}

int64_t Geometry::output_width(int64_t width) const {
    return output_size(width, left, right, kernel_width, dilation_x, stride_x);
}

Layer::Layer(const Geometry& geometry, int64_t block_groups, int64_t terms, const Channelwise& channelwise,
             const Kernels& kernels, void (*row)(const Row&))
    : geometry_(geometry),
      kernels_(kernels),
      block_groups_(block_groups),
      blocks_per_group_((geometry.outputs / block_groups + kernels.lanes - 1) / kernels.lanes),
      terms_(terms),
      row_(row) {
    const std::vector<float>* steps[] = {&channelwise.scale,       &channelwise.bias,       &channelwise.slope,
                                         &channelwise.slope_after, &channelwise.sign_scale, &channelwise.sign_bias};
    const int64_t lanes = kernels_.lanes;
    for (int step = 0; step < 6; ++step) {
        if (steps[step]->empty()) continue;
        Lines<float>& padded = channelwise_[step];
        padded.resize(static_cast<size_t>(blocks() * lanes));
        for (int64_t block = 0; block < blocks(); ++block)
            std::copy_n(steps[step]->data() + first_channel(block), channels_of(block), padded.data() + block * lanes);
    }
    sign_[0] = channelwise.sign_scale;
    sign_[1] = channelwise.sign_bias;
    odd_ = geometry.channels / geometry.groups % 2 != 0;
    const int64_t per_group = geometry_.outputs / geometry_.out_groups;
    for (int64_t block = 0; block < blocks(); ++block) {
        const int64_t channel = first_channel(block), within = channel % per_group;
        places_.push_back({channel, channels_of(block), block / blocks_per_group_, block % blocks_per_group_,
                           channel / per_group * (geometry_.output_words() / geometry_.out_groups) + within / kWordBits,
                           within % kWordBits / 8});
    }
    blocks_lie_on_bytes_ = blocks_lie_on_bytes();
    weights_.assign(static_cast<size_t>(blocks() * terms_ * lanes), 0);
}

int64_t Layer::first_channel(int64_t block) const {
    return block / blocks_per_group_ * (geometry_.outputs / block_groups_) + block % blocks_per_group_ * kernels_.lanes;
}

int64_t Layer::channels_of(int64_t block) const {
    return std::min(kernels_.lanes, geometry_.outputs / block_groups_ - block % blocks_per_group_ * kernels_.lanes);
}

// Whether every block begins on a byte of a word of the output's signs and stays in that word.
bool Layer::blocks_lie_on_bytes() const {
    const int64_t per_group = geometry_.outputs / geometry_.out_groups;
    for (int64_t block = 0; block < blocks(); ++block) {
        const int64_t count = channels_of(block), within = first_channel(block) % per_group;
        if (within % 8 != 0 || within % kWordBits + count > kWordBits || within + count > per_group) return false;
        // A block that is not whole bytes may only be a group's last, or it would clear its neighbour's bits.
        if (count % 8 != 0 && within + count != per_group) return false;
    }
    return true;
}

// The row of a block whose bases lie at `bases`.
Row Layer::row_of(const Image& image, int64_t row, int64_t block, const int32_t* bases) const {
    const Geometry& g = geometry_;
    const Place& place = places_[static_cast<size_t>(block)];
    const int64_t lanes = kernels_.lanes;
    Row job;
    job.cells = image.cells + row * image.row_bytes + place.group * image.group_bytes + place.block * image.block_bytes;
    job.offsets = image.offsets;
    job.weights = weights_.data() + block * terms_ * lanes;
    job.terms = terms_;
    job.step = image.step;
    job.width = image.columns;
    job.interior = bases;
    job.edges = bases + lanes;
    job.left = image.left;
    job.right = image.right;
    job.odd = odd_;
    const auto step = [&](int i) { return channelwise_[i].empty() ? nullptr : channelwise_[i].data() + block * lanes; };
    job.epilogue = {step(0), step(1), step(2), step(3), step(4), step(5)};
    job.channels = place.channels;
    job.pixel_stride = g.outputs;
    const int64_t first = row * image.columns * g.outputs + place.channel;
    job.residual = image.residual == nullptr ? nullptr : image.residual + first;
    job.y = image.y == nullptr ? nullptr : image.y + first;
    job.bits = nullptr;
    if (image.bits != nullptr) {
        uint32_t* first_word = image.bits + (row * g.output_words() + place.word) * image.columns;
        job.bits = reinterpret_cast<uint8_t*>(first_word) + place.byte;
    }
    return job;
}

void Layer::run_tile(const Image& image, int64_t first_row, int64_t end_row, int64_t first_block,
                     int64_t end_block) const {
    static thread_local Lines<int32_t> base_buffer;
    static thread_local Lines<Row> row_buffer;
    const Geometry& g = geometry_;
    const int64_t lanes = kernels_.lanes, size = image.bases() * lanes;
    const int64_t row_values = image.columns * g.outputs, row_words = image.columns * g.output_words();
    const auto taps = [&](int64_t row) {
        return taps_inside(row, g.stride_y, g.top, g.dilation_y, g.kernel_height, image.height);
    };
    const auto run = [&](int64_t from_block, int64_t to_block) {
        const int64_t count = to_block - from_block;
        int32_t* bases = scratch(base_buffer, count * size);
        Row* jobs = scratch(row_buffer, count);
        for (int64_t i = 0; i < count; ++i) jobs[i] = row_of(image, first_row, from_block + i, bases + i * size);
        Taps last{-1, -1};
        for (int64_t row = first_row; row < end_row; ++row) {
            if (const Taps now = taps(row); now != last) {
                for (int64_t i = 0; i < count; ++i)
                    bases_of(image, from_block + i, now.first, now.end, bases + i * size);
                last = now;
            }
            for (int64_t i = 0; i < count; ++i) {
                Row& job = jobs[i];
                row_(job);
                job.cells = static_cast<const char*>(job.cells) + image.row_bytes;
                if (job.residual != nullptr) job.residual += row_values;
                if (job.y != nullptr) job.y += row_values;
                if (job.bits != nullptr) job.bits += row_words * static_cast<int64_t>(sizeof(uint32_t));
            }
        }
    };
    // A row through all blocks writes whole pixels; but its weights must be read again for every row.
    if (terms_ * lanes * 4 * (end_block - first_block) <= kWeightBytesOfARow) return run(first_block, end_block);
    for (int64_t block = first_block; block < end_block; ++block) run(block, block + 1);
}

void Layer::run_image(const Image& image, const ParallelFor& parallel_for) const {
    struct Tiles {
        const Layer* layer;
        const Image* image;
        int64_t by_rows, by_blocks;
    };
    const int64_t work = image.rows * image.columns * blocks() * terms_;
    const int64_t wanted = std::clamp(work / kLeastTermsOfATile, int64_t{1}, kMostTiles);
    Tiles tiles{this, &image, 1, 1};
    if (terms_ * kernels_.lanes * 4 * blocks() > kWeightBytesOfARow && blocks() >= wanted) {
        tiles.by_blocks = wanted;
    } else {
        tiles.by_rows = std::min(wanted, image.rows);
        tiles.by_blocks = std::min((wanted + tiles.by_rows - 1) / tiles.by_rows, blocks());
    }
    const auto body = [](void* data, size_t i) {
        const Tiles& t = *static_cast<const Tiles*>(data);
        const int64_t row = static_cast<int64_t>(i) / t.by_blocks, block = static_cast<int64_t>(i) % t.by_blocks;
        const int64_t rows = t.image->rows, blocks = t.layer->blocks();
        t.layer->run_tile(*t.image, row * rows / t.by_rows, (row + 1) * rows / t.by_rows, block * blocks / t.by_blocks,
                          (block + 1) * blocks / t.by_blocks);
    };
    parallel_for(body, static_cast<size_t>(tiles.by_rows * tiles.by_blocks), &tiles);
}

// The signs of an image's output that could not be written block by block.
void Layer::sign_image(const Image& image, uint32_t* out_bits) const {
    const Geometry& g = geometry_;
    const float* scale = sign_[0].empty() ? nullptr : sign_[0].data();
    const float* bias = sign_[1].empty() ? nullptr : sign_[1].data();
    for (int64_t row = 0; row < image.rows; ++row)
        kernels_.binarize({image.y + row * image.columns * g.outputs, image.columns, g.outputs, g.out_groups, scale,
                           bias, out_bits + row * g.output_words() * image.columns});
}

template <typename CellsOf>
void Layer::run_batch(Image image, int64_t batch, const float* residual, float* y, uint32_t* out_bits,
                      const ParallelFor& parallel_for, CellsOf cells_of) const {
    static thread_local Lines<float> y_buffer;
    const Geometry& g = geometry_;
    const int64_t pixels = image.rows * image.columns, words = g.output_words() * pixels;
    const bool by_block = out_bits == nullptr || blocks_lie_on_bytes_;
    if (by_block && out_bits != nullptr && g.outputs / g.out_groups % kWordBits != 0)
        std::memset(out_bits, 0, static_cast<size_t>(batch * words) * sizeof(uint32_t));
    for (int64_t n = 0; n < batch; ++n) {
        image.cells = cells_of(n);
        image.residual = residual == nullptr ? nullptr : residual + n * pixels * g.outputs;
        image.bits = out_bits != nullptr && by_block ? out_bits + n * words : nullptr;
        image.y = y != nullptr ? y + n * pixels * g.outputs
                  : by_block   ? nullptr
                               : scratch(y_buffer, pixels * g.outputs);
        run_image(image, parallel_for);
        if (!by_block) sign_image(image, out_bits + n * words);
    }
}

BinaryLayer::BinaryLayer(const Geometry& geometry, const uint32_t* weights, const Channelwise& channelwise,
                         const Kernels& kernels)
    : Layer(geometry, geometry.groups,
            geometry.kernel_height * geometry.kernel_width * geometry.input_words() / geometry.groups, channelwise,
            kernels, kernels.binary_row),
      group_words_(geometry.input_words() / geometry.groups) {
    const Geometry& g = geometry_;
    const int64_t lanes = kernels_.lanes, channels = g.channels / g.groups;
    const int64_t taps_high = g.kernel_height + 1, taps_wide = g.kernel_width + 1;
    taps_.assign(static_cast<size_t>(blocks() * taps_high * taps_wide * lanes), 0);
    ones_.assign(static_cast<size_t>(blocks() * lanes), 0);
    for (int64_t block = 0; block < blocks(); ++block)
        for (int64_t lane = 0; lane < channels_of(block); ++lane) {
            const uint32_t* own = weights + (first_channel(block) + lane) * terms_;
            int32_t* sums = taps_.data() + block * taps_high * taps_wide * lanes + lane;
            for (int64_t ky = 0; ky < g.kernel_height; ++ky)
                for (int64_t kx = 0; kx < g.kernel_width; ++kx) {
                    int set = 0;
                    for (int64_t word = 0; word < group_words_; ++word) {
                        const uint32_t bits =
                            own[(ky * g.kernel_width + kx) * group_words_ + word] & mask_of(channels, word);
                        set += bit_count(bits);
                        const int64_t term = (ky * group_words_ + word) * g.kernel_width + kx;  // as in `offsets`
                        const bool paired = kernels_.paired && term < terms_ / 2 * 2;
                        const int64_t place = paired ? (term / 2 * lanes + lane) * 2 + term % 2 : term * lanes + lane;
                        weights_[static_cast<size_t>(block * terms_ * lanes + place)] = bits;
                    }
                    ones_[static_cast<size_t>(block * lanes + lane)] += 2 * set;
                    // Sums over the rectangle of taps before (ky + 1, kx + 1), so that any rectangle takes four of
                    // them.
                    const auto at = [&](int64_t y, int64_t x) -> int32_t& { return sums[(y * taps_wide + x) * lanes]; };
                    at(ky + 1, kx + 1) =
                        static_cast<int32_t>(channels) - 2 * set + at(ky, kx + 1) + at(ky + 1, kx) - at(ky, kx);
                }
        }
}

// The integer sum is base - 2 * (bits that differ), where taps outside the image hold zero bits. With inside(w) the sum
// over the taps inside of channels - 2 * (set bits of the weights), and all(w) the set bits of all weights, the taps
// outside differ in as many bits as their weights have set: base = inside + 2 * all. Any other padding is a number.
void BinaryLayer::bases_of(const Image& image, int64_t block, int64_t top, int64_t end, int32_t* bases) const {
    const Geometry& g = geometry_;
    const int64_t lanes = kernels_.lanes;
    const int32_t* ones = ones_.data() + block * lanes;
    if (g.pad_value != 0) {
        const int64_t all = g.channels / g.groups * g.kernel_height * g.kernel_width;
        std::fill_n(bases, lanes, static_cast<int32_t>(all));
        return;
    }
    const int64_t wide = g.kernel_width + 1;
    const int32_t* sums = taps_.data() + block * (g.kernel_height + 1) * wide * lanes;
    const auto fill = [&](const Taps& taps, int32_t* base) {
        const int32_t* a = sums + (end * wide + taps.end) * lanes;
        const int32_t* b = sums + (top * wide + taps.end) * lanes;
        const int32_t* c = sums + (end * wide + taps.first) * lanes;
        const int32_t* d = sums + (top * wide + taps.first) * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) base[lane] = ones[lane] + a[lane] - b[lane] - c[lane] + d[lane];
    };
    fill({0, g.kernel_width}, bases);
    for (int64_t i = 0; i < image.left + image.right; ++i) {
        const int64_t column = i < image.left ? i : image.columns - image.right + (i - image.left);
        fill(taps_inside(column, g.stride_x, g.left, g.dilation_x, g.kernel_width, image.width),
             bases + (1 + i) * lanes);
    }
}

void BinaryLayer::run(const uint32_t* bits, int64_t batch, int64_t height, int64_t width, const float* residual,
                      float* y, uint32_t* out_bits, const ParallelFor& parallel_for) const {
    static thread_local Lines<uint32_t> canvas_buffer;
    static thread_local Lines<int32_t> offset_buffer;
    const Geometry& g = geometry_;
    const int64_t words = g.input_words();
    const bool padded = g.top != 0 || g.left != 0 || g.bottom != 0 || g.right != 0;
    const int64_t padded_height = height + g.top + g.bottom, padded_width = width + g.left + g.right;

    Image image{};
    image.row_bytes = g.stride_y * words * padded_width * static_cast<int64_t>(sizeof(uint32_t));
    image.group_bytes = group_words_ * padded_width * static_cast<int64_t>(sizeof(uint32_t));
    image.step = g.stride_x;
    image.height = height;
    image.width = width;
    image.rows = g.output_height(height);
    image.columns = g.output_width(width);
    if (batch == 0 || image.rows == 0 || image.columns == 0) return;
    if (g.pad_value == 0) {
        // All taps are inside from the first column that is not before the image to the last that does not leave it.
        const int64_t reach = (g.kernel_width - 1) * g.dilation_x;
        const int64_t first = (g.left + g.stride_x - 1) / g.stride_x;
        const int64_t last = width + g.left - 1 - reach;
        const int64_t end = last < 0 ? 0 : std::min(image.columns, last / g.stride_x + 1);
        image.left = end > first ? first : image.columns;
        image.right = end > first ? image.columns - end : 0;
    }
    int32_t* offsets = scratch(offset_buffer, terms_);
    image.offsets = offsets;
    for (int64_t ky = 0; ky < g.kernel_height; ++ky)
        for (int64_t word = 0; word < group_words_; ++word)
            for (int64_t kx = 0; kx < g.kernel_width; ++kx)
                *offsets++ =
                    static_cast<int32_t>((ky * g.dilation_y * words + word) * padded_width + kx * g.dilation_x);

    uint32_t* canvas = nullptr;
    if (padded) {
        canvas = scratch(canvas_buffer, padded_height * words * padded_width);
        std::fill_n(canvas, padded_height * words * padded_width, 0u);
        if (g.pad_value < 0)
            for (int64_t line = 0; line < padded_height * words; ++line)
                std::fill_n(canvas + line * padded_width, padded_width,
                            mask_of(g.channels / g.groups, line % words % group_words_));
    }
    run_batch(image, batch, residual, y, out_bits, parallel_for, [&](int64_t n) {
        const uint32_t* own = bits + n * height * words * width;
        if (padded)
            for (int64_t line = 0; line < height * words; ++line)
                std::memcpy(canvas + (g.top * words + line) * padded_width + g.left, own + line * width,
                            static_cast<size_t>(width) * sizeof(uint32_t));
        return reinterpret_cast<const char*>(padded ? canvas : own);
    });
}

namespace {

// Whether every output has an input channel of its own: then the lanes of a block lie side by side in the image.
bool is_channelwise(const Geometry& g) { return g.groups > 1 && g.groups == g.channels && g.groups == g.outputs; }

// Values that lie side by side and are multiplied one after the other: a kernel row's where it has no dilation and all
// channels are of one group; else a tap's.
int64_t run_of(const Geometry& g) {
    const int64_t channels = g.channels / g.groups;
    return g.groups == 1 && g.dilation_x == 1 ? g.kernel_width * channels : channels;
}

int64_t grid_terms(const Geometry& g) {
    const int64_t run = run_of(g), values = g.kernel_height * g.kernel_width * (g.channels / g.groups);
    return values / run * ((run + 1) / 2);
}

}  // namespace

GridLayer::GridLayer(const Geometry& geometry, const int8_t* weights, float input_scale, int64_t levels,
                     const Channelwise& channelwise, const Kernels& kernels)
    : Layer(geometry, is_channelwise(geometry) ? 1 : geometry.groups, grid_terms(geometry), channelwise, kernels,
            is_channelwise(geometry) ? kernels.channelwise_row : kernels.grid_row),
      input_scale_(input_scale),
      levels_(static_cast<float>(levels)),
      channelwise_(is_channelwise(geometry)),
      run_(run_of(geometry)) {
    const Geometry& g = geometry_;
    const int64_t lanes = kernels_.lanes, pairs = (run_ + 1) / 2;
    const int64_t values = g.kernel_height * g.kernel_width * (g.channels / g.groups);
    for (int64_t block = 0; block < blocks(); ++block)
        for (int64_t lane = 0; lane < channels_of(block); ++lane) {
            const int8_t* own = weights + (first_channel(block) + lane) * values;
            for (int64_t i = 0; i < values; ++i) {
                const int64_t term = i / run_ * pairs + i % run_ / 2;
                const auto half = static_cast<uint32_t>(static_cast<uint16_t>(static_cast<int16_t>(own[i])));
                weights_[static_cast<size_t>((block * terms_ + term) * lanes + lane)] |= half << (i % run_ % 2 * 16);
            }
        }
}

void GridLayer::bases_of(const Image&, int64_t, int64_t, int64_t, int32_t*) const {}  // sums begin with 0

void GridLayer::run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual, float* y,
                    uint32_t* out_bits, const ParallelFor& parallel_for) const {
    static thread_local Lines<int16_t> canvas_buffer;
    static thread_local Lines<int32_t> offset_buffer;
    const Geometry& g = geometry_;
    const int64_t padded_height = height + g.top + g.bottom;
    const int64_t line = (width + g.left + g.right) * g.channels;  // cells of a padded row

    Image image{};
    image.row_bytes = g.stride_y * line * static_cast<int64_t>(sizeof(int16_t));
    image.group_bytes = g.channels / g.groups * static_cast<int64_t>(sizeof(int16_t));
    image.block_bytes = channelwise_ ? kernels_.lanes * static_cast<int64_t>(sizeof(int16_t)) : 0;
    image.step = g.stride_x * g.channels;
    image.height = height;
    image.width = width;
    image.rows = g.output_height(height);
    image.columns = g.output_width(width);
    if (batch == 0 || image.rows == 0 || image.columns == 0) return;
    int32_t* offsets = scratch(offset_buffer, terms_);
    image.offsets = offsets;
    const int64_t runs = g.kernel_width * (g.channels / g.groups) / run_;  // in a row of the kernel
    for (int64_t ky = 0; ky < g.kernel_height; ++ky)
        for (int64_t i = 0; i < runs; ++i)
            for (int64_t value = 0; value < run_; value += 2)
                *offsets++ = static_cast<int32_t>(ky * g.dilation_y * line + i * g.dilation_x * g.channels + value);

    // The last pair of an odd run reads one value more, and the last block of channels the rest of its lanes; their
    // weights are 0.
    const int64_t cells = padded_height * line + kernels_.lanes;
    int16_t* canvas = scratch(canvas_buffer, cells);
    std::fill_n(canvas, cells, int16_t{0});
    run_batch(image, batch, residual, y, out_bits, parallel_for, [&](int64_t n) {
        for (int64_t row = 0; row < height; ++row)
            kernels_.snap(x + (n * height + row) * width * g.channels, width * g.channels, input_scale_, levels_,
                          canvas + (g.top + row) * line + g.left * g.channels);
        return reinterpret_cast<const char*>(canvas);
    });
}

}  // namespace edgefold
