// The operators: what a node says is checked when its kernel is created, what it is given when it runs. Whatever is
// wrong is thrown as `Invalid` and given back as a status; nothing else leaves this file.
#include "operators.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "layer.h"
#include "node.h"

namespace edgefold {
namespace {

using ort::Api;
using ort::Context;
using ort::Info;
using ort::Status;
using ort::Value;

class Binarize {
   public:
    static constexpr const char* kName = "Binarize";
    static constexpr size_t kInputs = 3, kOutputs = 1;
    static constexpr size_t kRequiredInputs = 1, kRequiredOutputs = 1;
    static constexpr ort::ElementType kInputTypes[] = {ort::kFloat, ort::kFloat, ort::kFloat};
    static constexpr ort::ElementType kOutputTypes[] = {ort::kUint32};

    Binarize(const Api& api, const Info* info) : api_(api), kernels_(kernels_in_use()) {
        groups_ = attribute_within(api, info, "group", 1, 1, kMostProducts);
        const bool affine = values(info, 1, "scale", &scale_);
        if (values(info, 2, "bias", &bias_) != affine || scale_.size() != bias_.size())
            refuse("scale and bias must both be given, of one size and constant, or neither");
    }

    void run(Context* context) const {
        const Value* value = input(api_, context, 0);
        if (value == nullptr) refuse("X is missing");
        const Tensor x = tensor_of(api_, value, ort::kFloat, "X");
        if (x.sizes.size() != 4 && x.sizes.size() != 2)
            refuse("X is " + text_of(x.sizes) + "; expected [N, H, W, C] or [N, C]");
        refuse_variable(api_, context, 1, "scale", !scale_.empty());
        refuse_variable(api_, context, 2, "bias", !bias_.empty());
        const int64_t channels = x.sizes.back();
        if (channels < 1 || channels % groups_ != 0)
            refuse("X is " + text_of(x.sizes) + "; expected channels that " + std::to_string(groups_) +
                   " groups divide");
        if (!scale_.empty() && static_cast<int64_t>(scale_.size()) != channels)
            refuse("scale has " + std::to_string(scale_.size()) + " values; X has " + std::to_string(channels) +
                   " channels");
        const bool image = x.sizes.size() == 4;
        const int64_t words = words_of(channels, groups_);
        const Sizes sizes = image ? Sizes{x.sizes[0], x.sizes[1], words, x.sizes[2]} : Sizes{x.sizes[0], words};
        auto* out = static_cast<uint32_t*>(output(api_, context, 0, sizes));
        if (out == nullptr) refuse("B is missing");
        const int64_t rows = image ? times(x.sizes[0], x.sizes[1]) : x.sizes[0];
        const int64_t pixels = image ? x.sizes[2] : 1;
        if (rows == 0 || pixels == 0) return;
        Rows job{this, x.as<float>(), out, rows, pixels, channels, words};
        job.tiles = std::clamp(rows * pixels * words / kWordsOfATile, int64_t{1}, std::min(kMostTiles, rows));
        const auto body = [](void* data, size_t i) {
            const Rows& r = *static_cast<const Rows*>(data);
            const int64_t tile = static_cast<int64_t>(i);
            for (int64_t row = tile * r.rows / r.tiles; row < (tile + 1) * r.rows / r.tiles; ++row)
                r.op->kernels_.binarize({r.x + row * r.pixels * r.channels, r.pixels, r.channels, r.op->groups_,
                                         r.op->scale_.empty() ? nullptr : r.op->scale_.data(),
                                         r.op->bias_.empty() ? nullptr : r.op->bias_.data(),
                                         r.out + row * r.pixels * r.words});
        };
        if (job.tiles == 1) return body(&job, 0);
        check(api_, api_.parallel_for(context, body, static_cast<size_t>(job.tiles), &job));
    }

   private:
    static constexpr int64_t kMostTiles = 8, kWordsOfATile = 2048;

    struct Rows {
        const Binarize* op;
        const float* x;
        uint32_t* out;
        int64_t rows, pixels, channels, words;
        int64_t tiles = 1;
    };

    bool values(const Info* info, size_t i, const char* name, std::vector<float>* out) const {
        Tensor tensor;
        if (!constant(api_, info, i, ort::kFloat, name, &tensor)) return false;
        if (tensor.sizes.size() != 1 || tensor.sizes[0] < 1)
            refuse(std::string(name) + " is " + text_of(tensor.sizes) + "; expected [C]");
        out->assign(tensor.as<float>(), tensor.as<float>() + tensor.sizes[0]);
        return true;
    }

    Api api_;
    const Kernels& kernels_;
    int64_t groups_;
    std::vector<float> scale_, bias_;
};

// What all layers have in common: the inputs behind the weights, both outputs, and how a convolution moves.
template <typename LayerType>
class LayerOp {
   public:
    static constexpr size_t kInputs = 9, kOutputs = 2;
    static constexpr size_t kRequiredInputs = 4, kRequiredOutputs = 0;
    static constexpr ort::ElementType kOutputTypes[] = {ort::kFloat, ort::kUint32};

   protected:
    explicit LayerOp(const Api& api) : api_(api) {}

    const Geometry& geometry() const { return layer_->geometry(); }

    void read_form(const Info* info, Geometry* g) const {
        const auto strides = attributes_within(api_, info, "strides", {1, 1}, 1, kMostSize);
        const auto dilations = attributes_within(api_, info, "dilations", {1, 1}, 1, kMostSize);
        const auto pads = attributes_within(api_, info, "pads", {0, 0, 0, 0}, 0, kMostSize);
        g->stride_y = strides[0];
        g->stride_x = strides[1];
        g->dilation_y = dilations[0];
        g->dilation_x = dilations[1];
        g->top = pads[0];
        g->left = pads[1];
        g->bottom = pads[2];
        g->right = pads[3];
        g->groups = attribute_within(api_, info, "group", 1, 1, kMostProducts);
    }

    void read_groups(const Info* info, Geometry* g) const {
        g->out_groups = attribute_within(api_, info, "out_group", 1, 1, g->outputs);
        if (g->channels % g->groups != 0 || g->outputs % g->groups != 0 || g->outputs % g->out_groups != 0)
            refuse("channels " + std::to_string(g->channels) + " and outputs " + std::to_string(g->outputs) +
                   " cannot be divided into group " + std::to_string(g->groups) + " and out_group " +
                   std::to_string(g->out_groups));
        if (times(times(g->kernel_height, g->kernel_width), g->channels / g->groups) > kMostProducts)
            refuse("an output adds more than 2^24 products, whose sum float32 cannot hold");
    }

    Channelwise read_channelwise(const Info* info, int64_t outputs) {
        Channelwise c;
        c.scale = channelwise(api_, info, 2, "scale", outputs, true);
        c.bias = channelwise(api_, info, 3, "bias", outputs, true);
        c.slope = channelwise(api_, info, 4, "slope", outputs, false);
        c.slope_after = channelwise(api_, info, 6, "slope_after", outputs, false);
        c.sign_scale = channelwise(api_, info, 7, "sign_scale", outputs, false);
        c.sign_bias = channelwise(api_, info, 8, "sign_bias", outputs, false);
        if (c.sign_scale.empty() != c.sign_bias.empty())
            refuse("sign_scale and sign_bias must both be given and constant, or neither");
        has_slope_ = !c.slope.empty();
        has_slope_after_ = !c.slope_after.empty();
        has_sign_affine_ = !c.sign_scale.empty();
        return c;
    }

    Tensor first_input(const Context* context, ort::ElementType type) const {
        const Value* value = input(api_, context, 0);
        if (value == nullptr) refuse("X is missing");
        refuse_variable(api_, context, 4, "slope", has_slope_);
        refuse_variable(api_, context, 6, "slope_after", has_slope_after_);
        refuse_variable(api_, context, 7, "sign_scale", has_sign_affine_);
        refuse_variable(api_, context, 8, "sign_bias", has_sign_affine_);
        return tensor_of(api_, value, type, "X");
    }

    const float* residual(const Context* context, const Sizes& sizes) const {
        const Value* value = input(api_, context, 5);
        if (value == nullptr) return nullptr;
        const Tensor tensor = tensor_of(api_, value, ort::kFloat, "residual");
        if (tensor.sizes != sizes)
            refuse("residual is " + text_of(tensor.sizes) + "; expected " + text_of(sizes) + " as the output");
        return tensor.as<float>();
    }

    // Runs a convolution of images [batch, height, width] with `depth` cells a pixel.
    template <typename T>
    void convolve(Context* context, const Tensor& x, int64_t height, int64_t width, int64_t depth) const {
        const Geometry& g = geometry();
        const int64_t batch = x.sizes[0];
        // An image without pixels would cost its sender nothing, and here as much as its padding.
        if (height < 1 || width < 1) refuse("X is " + text_of(x.sizes) + "; expected at least one pixel an image");
        // Before the output's size, which is computed from sums of these.
        if (height > kMostCells || width > kMostCells) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const int64_t padded = times(times(height + g.top + g.bottom, depth), width + g.left + g.right);
        if (padded > kMostCells) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const int64_t rows = g.output_height(height), columns = g.output_width(width);
        if (rows < 1 || columns < 1) refuse("X is " + text_of(x.sizes) + ", smaller with its padding than the kernel");
        if (times(times(rows, columns), g.outputs) > kMostOutputs) refuse("an image of Y would be too large");
        const Sizes sizes{batch, rows, columns, g.outputs};
        const float* added = residual(context, sizes);
        auto* y = static_cast<float*>(output(api_, context, 0, sizes));
        auto* out = static_cast<uint32_t*>(output(api_, context, 1, {batch, rows, g.output_words(), columns}));
        if (y == nullptr && out == nullptr) refuse("the node has neither output");
        Pool pool(api_, context);
        layer_->run(x.as<T>(), batch, height, width, added, y, out, pool.parallel_for());
    }

    Api api_;
    std::unique_ptr<LayerType> layer_;

   private:
    static constexpr int64_t kMostSize = 1 << 16;

    bool has_slope_ = false, has_slope_after_ = false, has_sign_affine_ = false;
};

// What BinaryConv and BinaryGemm have in common: all but the shapes.
class BinaryOp : public LayerOp<BinaryLayer> {
   public:
    static constexpr ort::ElementType kInputTypes[] = {ort::kUint32, ort::kUint32, ort::kFloat,
                                                       ort::kFloat,  ort::kFloat,  ort::kFloat,
                                                       ort::kFloat,  ort::kFloat,  ort::kFloat};

   protected:
    BinaryOp(const Api& api, const Info* info, size_t weight_rank) : LayerOp(api) {
        Tensor weights;
        if (!constant(api, info, 1, ort::kUint32, "W", &weights)) refuse("W is missing, or is not a constant");
        Geometry g;
        g.channels = attribute(api, info, "channels", 0);
        if (g.channels < 1 || g.channels > kMostProducts)
            refuse("channels is " + std::to_string(g.channels) + "; expected the number of X's channels");
        if (weights.sizes.size() != weight_rank || weights.count() == 0)
            refuse("W is " + text_of(weights.sizes) + "; expected " +
                   (weight_rank == 4 ? "[outputs, kernel height, kernel width, words]" : "[outputs, words]"));
        g.outputs = weights.sizes[0];
        if (weight_rank == 4) {
            g.kernel_height = weights.sizes[1];
            g.kernel_width = weights.sizes[2];
            read_form(info, &g);
            g.pad_value = static_cast<int>(attribute_within(api, info, "pad_value", 0, -1, 1));
        }
        read_groups(info, &g);
        if (weights.sizes.back() != g.input_words() / g.groups)
            refuse("W has " + std::to_string(weights.sizes.back()) + " words; " + std::to_string(g.channels) +
                   " channels in " + std::to_string(g.groups) + " groups have " +
                   std::to_string(g.input_words() / g.groups));
        layer_ = std::make_unique<BinaryLayer>(g, weights.as<uint32_t>(), read_channelwise(info, g.outputs),
                                               kernels_in_use());
    }

    Tensor bits(const Context* context, size_t rank) const {
        Tensor x = first_input(context, ort::kUint32);
        const int64_t words = geometry().input_words();
        if (x.sizes.size() != rank || x.sizes[rank == 4 ? 2 : 1] != words)
            refuse("X is " + text_of(x.sizes) + "; expected " + (rank == 4 ? "[N, H, " : "[N, ") +
                   std::to_string(words) + (rank == 4 ? ", W]" : "]"));
        return x;
    }
};

class BinaryConv : public BinaryOp {
   public:
    static constexpr const char* kName = "BinaryConv";

    BinaryConv(const Api& api, const Info* info) : BinaryOp(api, info, 4) {}

    void run(Context* context) const {
        const Tensor x = bits(context, 4);
        convolve<uint32_t>(context, x, x.sizes[1], x.sizes[3], geometry().input_words());
    }
};

class BinaryGemm : public BinaryOp {
   public:
    static constexpr const char* kName = "BinaryGemm";

    BinaryGemm(const Api& api, const Info* info) : BinaryOp(api, info, 2) {}

    void run(Context* context) const {
        static thread_local std::vector<uint32_t> in_buffer, out_buffer;
        const Tensor x = bits(context, 2);
        const Geometry& g = geometry();
        const int64_t batch = x.sizes[0], words = g.input_words(), out_words = g.output_words();
        if (times(batch, words) > kMostCells) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const Sizes sizes{batch, g.outputs};
        const float* added = residual(context, sizes);
        auto* y = static_cast<float*>(output(api_, context, 0, sizes));
        auto* out = static_cast<uint32_t*>(output(api_, context, 1, {batch, out_words}));
        if (y == nullptr && out == nullptr) refuse("the node has neither output");
        if (batch == 0) return;
        Pool pool(api_, context);
        // The batch is the row of pixels, whose words lie side by side.
        const uint32_t* in = x.as<uint32_t>();
        if (batch > 1 && words > 1) in = transposed(in, batch, words, &in_buffer);
        const bool turn = out != nullptr && batch > 1 && out_words > 1;
        uint32_t* turned = out;
        if (turn) {
            out_buffer.resize(std::max(out_buffer.size(), static_cast<size_t>(batch * out_words)));
            turned = out_buffer.data();
        }
        layer_->run(in, 1, 1, batch, added, y, turned, pool.parallel_for());
        if (!turn) return;
        for (int64_t word = 0; word < out_words; ++word)
            for (int64_t n = 0; n < batch; ++n) out[n * out_words + word] = turned[word * batch + n];
    }

   private:
    static const uint32_t* transposed(const uint32_t* in, int64_t rows, int64_t columns,
                                      std::vector<uint32_t>* buffer) {
        buffer->resize(std::max(buffer->size(), static_cast<size_t>(rows * columns)));
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
                (*buffer)[static_cast<size_t>(column * rows + row)] = in[row * columns + column];
        return buffer->data();
    }
};

class FixedConv : public LayerOp<GridLayer> {
   public:
    static constexpr const char* kName = "FixedConv";
    static constexpr ort::ElementType kInputTypes[] = {ort::kFloat, ort::kInt8,  ort::kFloat, ort::kFloat, ort::kFloat,
                                                       ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};

    FixedConv(const Api& api, const Info* info) : LayerOp(api) {
        Tensor weights;
        if (!constant(api, info, 1, ort::kInt8, "W", &weights)) refuse("W is missing, or is not a constant");
        if (weights.sizes.size() != 4 || weights.count() == 0)
            refuse("W is " + text_of(weights.sizes) + "; expected [outputs, kernel height, kernel width, channels]");
        Geometry g;
        g.outputs = weights.sizes[0];
        g.kernel_height = weights.sizes[1];
        g.kernel_width = weights.sizes[2];
        read_form(info, &g);
        g.channels = times(weights.sizes[3], g.groups);
        read_groups(info, &g);
        const float input_scale = required_float(api, info, "input_scale");
        int exponent = 0;
        if (!(input_scale > 0) || std::frexp(input_scale, &exponent) != 0.5f)
            refuse("input_scale is " + std::to_string(input_scale) + "; expected a power of two");
        const int64_t levels = attribute_within(api, info, "levels", 0, 1, INT16_MAX);
        const int64_t products = weights.count() / g.outputs;
        for (int64_t i = 0; i < g.outputs; ++i) {
            int64_t sum = 0;
            for (int64_t j = 0; j < products; ++j) sum += std::abs(int{weights.as<int8_t>()[i * products + j]});
            if (sum * levels >= kMostProducts)
                refuse("sums of output " + std::to_string(i) + " may reach 2^24, beyond which float32 is not exact");
        }
        layer_ = std::make_unique<GridLayer>(g, weights.as<int8_t>(), input_scale, levels,
                                             read_channelwise(info, g.outputs), kernels_in_use());
    }

    void run(Context* context) const {
        const Tensor x = first_input(context, ort::kFloat);
        const int64_t channels = geometry().channels;
        if (x.sizes.size() != 4 || x.sizes[3] != channels)
            refuse("X is " + text_of(x.sizes) + "; expected [N, H, W, " + std::to_string(channels) + "]");
        convolve<float>(context, x, x.sizes[1], x.sizes[2], channels);
    }
};

class PoolOp {
   public:
    static constexpr const char* kName = "Pool";
    static constexpr size_t kInputs = 1, kOutputs = 1;
    static constexpr size_t kRequiredInputs = 1, kRequiredOutputs = 1;
    static constexpr ort::ElementType kInputTypes[] = {ort::kFloat};
    static constexpr ort::ElementType kOutputTypes[] = {ort::kFloat};

    PoolOp(const Api& api, const Info* info) : api_(api), kernels_(kernels_in_use()) {
        const std::string mode = required_string(api, info, "mode");
        if (mode != "max" && mode != "mean") refuse("mode is '" + mode + "'; expected max or mean");
        mean_ = mode == "mean";
        window_ = attributes_within(api, info, "kernel_shape", {-1, -1}, 0, kMostSize);
        if (window_[0] < 0) refuse("kernel_shape is missing");
        global_ = window_[0] == 0 && window_[1] == 0;
        if (!global_ && (window_[0] == 0 || window_[1] == 0))
            refuse("kernel_shape is " + text_of(window_) + "; expected two positive sizes, or [0, 0]");
        strides_ = attributes_within(api, info, "strides", {1, 1}, 1, kMostSize);
        pads_ = attributes_within(api, info, "pads", {0, 0, 0, 0}, 0, kMostSize);
        const bool padded = pads_ != std::vector<int64_t>{0, 0, 0, 0};
        if (padded && (mean_ || global_)) refuse("pads is " + text_of(pads_) + "; a mean takes no padding");
        for (size_t i = 0; i < 4; ++i)
            if (padded && pads_[i] >= window_[i % 2])
                refuse("pads is " + text_of(pads_) + "; a window would lie outside the image altogether");
    }

    void run(Context* context) const {
        const Value* value = input(api_, context, 0);
        if (value == nullptr) refuse("X is missing");
        const Tensor x = tensor_of(api_, value, ort::kFloat, "X");
        if (x.sizes.size() != 4 || x.sizes[1] < 1 || x.sizes[2] < 1 || x.sizes[3] < 1)
            refuse("X is " + text_of(x.sizes) + "; expected [N, H, W, C]");
        if (x.sizes[1] > kMostCells || x.sizes[2] > kMostCells)
            refuse("X is " + text_of(x.sizes) + ", which is too large");
        Geometry g;
        g.kernel_height = global_ ? x.sizes[1] : window_[0];
        g.kernel_width = global_ ? x.sizes[2] : window_[1];
        g.stride_y = strides_[0];
        g.stride_x = strides_[1];
        g.top = pads_[0];
        g.left = pads_[1];
        g.bottom = pads_[2];
        g.right = pads_[3];
        const int64_t rows = g.output_height(x.sizes[1]), columns = g.output_width(x.sizes[2]), depth = x.sizes[3];
        if (rows < 1 || columns < 1) refuse("X is " + text_of(x.sizes) + ", smaller with its padding than the window");
        if (times(times(rows, columns), depth) > kMostOutputs) refuse("an image of Y would be too large");
        auto* y = static_cast<float*>(output(api_, context, 0, {x.sizes[0], rows, columns, depth}));
        if (y == nullptr) refuse("Y is missing");
        if (x.sizes[0] == 0) return;
        Rows job{this, &g, x.as<float>(), y, x.sizes[1], x.sizes[2], depth, rows, columns, times(x.sizes[0], rows)};
        job.tiles = std::clamp(job.all * columns * depth / kValuesOfATile, int64_t{1}, std::min(kMostTiles, job.all));
        if (job.tiles == 1) return job.run(0);
        const auto body = [](void* data, size_t i) { static_cast<const Rows*>(data)->run(static_cast<int64_t>(i)); };
        check(api_, api_.parallel_for(context, body, static_cast<size_t>(job.tiles), &job));
    }

   private:
    static constexpr int64_t kMostSize = 1 << 16, kMostTiles = 8, kValuesOfATile = 4096;

    struct Rows {
        const PoolOp* op;
        const Geometry* g;
        const float* x;
        float* y;
        int64_t height, width, depth, rows, columns, all;
        int64_t tiles = 1;

        void run(int64_t tile) const {
            for (int64_t i = tile * all / tiles; i < (tile + 1) * all / tiles; ++i)
                op->kernels_.pool({x + i / rows * height * width * depth, y + i * columns * depth, height, width, depth,
                                   columns, i % rows * g->stride_y - g->top, -g->left, g->stride_x, g->kernel_height,
                                   g->kernel_width, op->mean_});
        }
    };

    Api api_;
    const Kernels& kernels_;
    std::vector<int64_t> window_, strides_, pads_;
    bool mean_, global_;
};

// Runs `body`, and gives whatever it throws back as a status.
template <typename Body>
Status* guarded(const Api& api, const char* name, Body body) {
    std::string text;
    try {
        body();
        return nullptr;
    } catch (const Invalid& error) {
        text = std::string("edgefold::") + name + ": " + error.what();
        return api.create_status(ort::kInvalidArgument, text.c_str());
    } catch (const std::exception& error) {
        text = std::string("edgefold::") + name + ": " + error.what();
    } catch (...) {
        text = std::string("edgefold::") + name + ": unknown failure";
    }
    return api.create_status(ort::kFail, text.c_str());
}

template <typename Op>
struct Kernel {
    Api api;
    Op op;
};

template <typename Op>
Status* create(const ort::CustomOp*, const void* const* table, const Info* info, void** out) {
    const Api api(table);
    *out = nullptr;
    return guarded(api, Op::kName, [&] { *out = new Kernel<Op>{api, Op(api, info)}; });
}

template <typename Op>
Status* compute(void* kernel, Context* context) {
    const auto& self = *static_cast<const Kernel<Op>*>(kernel);
    return guarded(self.api, Op::kName, [&] { self.op.run(context); });
}

template <typename Op>
ort::CustomOp make() {
    using ort::CustomOp;
    CustomOp op{};
    op.version = ort::kApiVersion;
    op.name = [](const CustomOp*) { return Op::kName; };
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU
    op.inputs = [](const CustomOp*) { return Op::kInputs; };
    op.outputs = [](const CustomOp*) { return Op::kOutputs; };
    op.input_type = [](const CustomOp*, size_t i) -> int { return Op::kInputTypes[i]; };
    op.output_type = [](const CustomOp*, size_t i) -> int { return Op::kOutputTypes[i]; };
    op.destroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
    op.input_characteristic = [](const CustomOp*, size_t i) -> int {
        return i < Op::kRequiredInputs ? ort::kRequired : ort::kOptional;
    };
    op.output_characteristic = [](const CustomOp*, size_t i) -> int {
        return i < Op::kRequiredOutputs ? ort::kRequired : ort::kOptional;
    };
    op.input_memory = [](const CustomOp*, size_t) { return 0; };
    const auto none = [](const CustomOp*) { return 0; };
    op.variadic_input_least = op.variadic_input_alike = none;
    op.variadic_output_least = op.variadic_output_alike = none;
    op.create_kernel_v2 = create<Op>;
    op.compute_v2 = compute<Op>;
    op.first_version = [](const CustomOp*) { return 1; };
    op.last_version = [](const CustomOp*) { return 1; };
    return op;
}

}  // namespace

const ort::CustomOp* const* operators(size_t* count) {
    static const ort::CustomOp binarize = make<Binarize>(), conv = make<BinaryConv>(), gemm = make<BinaryGemm>(),
                               fixed = make<FixedConv>(), pool = make<PoolOp>();
    static const ort::CustomOp* const all[] = {&binarize, &conv, &gemm, &fixed, &pool};
    *count = sizeof all / sizeof *all;
    return all;
}

}  // namespace edgefold
