// The operators: what a node says is checked when its kernel is created, what it is given when it runs. Whatever is wrong
// is thrown here as `Invalid` and given back as a status; nothing else leaves this file.
#include "operators.h"

#include <algorithm>
#include <climits>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"

namespace edgefold {
namespace {

using ort::Api;
using ort::Context;
using ort::Info;
using ort::Status;
using ort::Value;

// Integer sums must be exact as float32.
constexpr int64_t kMostProducts = int64_t{1} << 24;
constexpr int64_t kMostElements = int64_t{1} << 40;
constexpr int64_t kMostOffset = INT32_MAX;  // offsets of words are 32 bits wide

class Invalid : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const std::string& what) { throw Invalid(what); }

void check(const Api& api, Status* status) {
    if (status == nullptr) return;
    const std::string text = api.message(status);
    api.release(status);
    refuse(text);
}

std::string text_of(const std::vector<int64_t>& sizes) {
    std::string text = "[";
    for (size_t i = 0; i < sizes.size(); ++i) text += (i != 0 ? ", " : "") + std::to_string(sizes[i]);
    return text + "]";
}

// a * b, at most kMostElements.
int64_t times(int64_t a, int64_t b) {
    if (a < 0 || b < 0 || (b != 0 && a > kMostElements / b)) refuse("a tensor would be too large");
    return a * b;
}

struct Tensor {
    std::vector<int64_t> sizes;
    const void* data = nullptr;

    int64_t count() const {
        int64_t count = 1;
        for (const int64_t size : sizes) count = times(count, size);
        return count;
    }
    template <typename T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

Tensor tensor_of(const Api& api, const Value* value, ort::ElementType type, const char* name) {
    ort::Shape* shape = nullptr;
    check(api, api.shape(value, &shape));
    const std::unique_ptr<ort::Shape, std::function<void(ort::Shape*)>> owner(shape,
                                                                              [&](ort::Shape* s) { api.release(s); });
    int came = 0;
    size_t rank = 0;
    check(api, api.element_type(shape, &came));
    check(api, api.rank(shape, &rank));
    if (came != type) refuse(std::string(name) + " has an element type that the operator does not take");
    Tensor tensor;
    tensor.sizes.resize(rank);
    check(api, api.sizes(shape, tensor.sizes.data(), rank));
    void* data = nullptr;
    check(api, api.data(value, &data));
    tensor.data = data;
    return tensor;
}

bool succeeds(const Api& api, Status* status) {
    if (status != nullptr) api.release(status);
    return status == nullptr;
}

// What cannot be read as the type it should have is absent, or it is there as something else.
void refuse_other_type(const Api& api, const Info* info, const char* name) {
    int64_t integer = 0;
    float real = 0;
    size_t integers = 0, reals = 0, letters = 0;
    succeeds(api, api.attribute(info, name, static_cast<int64_t*>(nullptr), &integers));
    succeeds(api, api.attribute(info, name, static_cast<float*>(nullptr), &reals));
    succeeds(api, api.attribute(info, name, static_cast<char*>(nullptr), &letters));
    if (integers != 0 || reals != 0 || letters != 0 || succeeds(api, api.attribute(info, name, &integer)) ||
        succeeds(api, api.attribute(info, name, &real)))
        refuse(std::string(name) + " has another type than the operator takes");
}

int64_t attribute(const Api& api, const Info* info, const char* name, int64_t fallback) {
    int64_t value = fallback;
    if (succeeds(api, api.attribute(info, name, &value))) return value;
    refuse_other_type(api, info, name);
    return fallback;
}

int64_t attribute_within(const Api& api, const Info* info, const char* name, int64_t fallback, int64_t least,
                         int64_t most) {
    const int64_t value = attribute(api, info, name, fallback);
    if (value < least || value > most)
        refuse(std::string(name) + " is " + std::to_string(value) + "; expected " + std::to_string(least) + " to " +
               std::to_string(most));
    return value;
}

std::vector<int64_t> attributes_within(const Api& api, const Info* info, const char* name,
                                       std::vector<int64_t> fallback, int64_t least, int64_t most) {
    size_t size = 0;
    if (!succeeds(api, api.attribute(info, name, static_cast<int64_t*>(nullptr), &size)) && size == 0) {
        refuse_other_type(api, info, name);
        return fallback;
    }
    std::vector<int64_t> values(size);
    if (size != 0) check(api, api.attribute(info, name, values.data(), &size));
    if (values.size() != fallback.size())
        refuse(std::string(name) + " has " + std::to_string(values.size()) + " values; expected " +
               std::to_string(fallback.size()));
    for (const int64_t value : values)
        if (value < least || value > most)
            refuse(std::string(name) + " is " + text_of(values) + "; expected values of " + std::to_string(least) +
                   " to " + std::to_string(most));
    return values;
}

// The constant input `i`, or nothing where it is left out.
bool constant(const Api& api, const Info* info, size_t i, ort::ElementType type, const char* name, Tensor* out) {
    size_t count = 0;
    check(api, api.input_count(info, &count));
    if (i >= count) return false;
    int is_constant = 0;
    const Value* value = nullptr;
    check(api, api.constant_input(info, i, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) return false;
    *out = tensor_of(api, value, type, name);
    return true;
}

std::vector<float> channelwise(const Api& api, const Info* info, size_t i, const char* name, int64_t channels,
                               bool required) {
    Tensor tensor;
    if (!constant(api, info, i, ort::kFloat, name, &tensor)) {
        if (required) refuse(std::string(name) + " is missing, or is not a constant");
        return {};
    }
    if (tensor.sizes != std::vector<int64_t>{channels})
        refuse(std::string(name) + " is " + text_of(tensor.sizes) + "; expected [" + std::to_string(channels) + "]");
    return {tensor.as<float>(), tensor.as<float>() + channels};
}

// What a run is given: inputs by number, absent ones as null.
const Value* input(const Api& api, const Context* context, size_t i) {
    size_t count = 0;
    check(api, api.input_count(context, &count));
    if (i >= count) return nullptr;
    const Value* value = nullptr;
    check(api, api.input(context, i, &value));
    return value;
}

void* output(const Api& api, Context* context, size_t i, const std::vector<int64_t>& sizes) {
    size_t count = 0;
    check(api, api.output_count(context, &count));
    if (i >= count) return nullptr;
    int64_t elements = 1;
    for (const int64_t size : sizes) elements = times(elements, size);
    Value* value = nullptr;
    check(api, api.output(context, i, sizes.data(), sizes.size(), &value));
    if (value == nullptr) return nullptr;
    void* data = nullptr;
    check(api, api.data(value, &data));
    return data;
}

// An input that had to be a constant, and was taken for absent because it is none.
void refuse_variable(const Api& api, const Context* context, size_t i, const char* name, bool known) {
    if (!known && input(api, context, i) != nullptr) refuse(std::string(name) + " is not a constant");
}

// RegisterCustomOps has refused an EDGEFOLD_ISA that names none, but it may have been set since.
const Kernels& kernels_in_use() {
    const Kernels* kernels = chosen_kernels();
    if (kernels == nullptr) refuse("EDGEFOLD_ISA names no kernels of this machine");
    return *kernels;
}

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
        const std::vector<int64_t> sizes =
            image ? std::vector<int64_t>{x.sizes[0], x.sizes[1], words, x.sizes[2]}
                  : std::vector<int64_t>{x.sizes[0], words};
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

// What BinaryConv and BinaryGemm have in common: all but the shapes.
class BinaryLayer {
   public:
    static constexpr size_t kInputs = 9, kOutputs = 2;
    static constexpr size_t kRequiredInputs = 4, kRequiredOutputs = 0;
    static constexpr ort::ElementType kInputTypes[] = {ort::kUint32, ort::kUint32, ort::kFloat, ort::kFloat, ort::kFloat,
                                                       ort::kFloat,  ort::kFloat,  ort::kFloat, ort::kFloat};
    static constexpr ort::ElementType kOutputTypes[] = {ort::kFloat, ort::kUint32};

   protected:
    BinaryLayer(const Api& api, const Info* info, size_t weight_rank) : api_(api) {
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
        }
        g.out_groups = attribute_within(api, info, "out_group", 1, 1, g.outputs);
        if (g.channels % g.groups != 0 || g.outputs % g.groups != 0 || g.outputs % g.out_groups != 0)
            refuse("channels " + std::to_string(g.channels) + " and outputs " + std::to_string(g.outputs) +
                   " cannot be divided into group " + std::to_string(g.groups) + " and out_group " +
                   std::to_string(g.out_groups));
        if (weights.sizes.back() != g.input_words() / g.groups)
            refuse("W has " + std::to_string(weights.sizes.back()) + " words; " + std::to_string(g.channels) +
                   " channels in " + std::to_string(g.groups) + " groups have " +
                   std::to_string(g.input_words() / g.groups));
        if (times(times(g.kernel_height, g.kernel_width), g.channels / g.groups) > kMostProducts)
            refuse("an output adds more than 2^24 products, whose sum float32 cannot hold");
        Channelwise c;
        c.scale = channelwise(api, info, 2, "scale", g.outputs, true);
        c.bias = channelwise(api, info, 3, "bias", g.outputs, true);
        c.slope = channelwise(api, info, 4, "slope", g.outputs, false);
        c.slope_after = channelwise(api, info, 6, "slope_after", g.outputs, false);
        c.sign_scale = channelwise(api, info, 7, "sign_scale", g.outputs, false);
        c.sign_bias = channelwise(api, info, 8, "sign_bias", g.outputs, false);
        if (c.sign_scale.empty() != c.sign_bias.empty())
            refuse("sign_scale and sign_bias must both be given and constant, or neither");
        has_slope_ = !c.slope.empty();
        has_slope_after_ = !c.slope_after.empty();
        has_sign_affine_ = !c.sign_scale.empty();
        layer_ = std::make_unique<Layer>(g, weights.as<uint32_t>(), c, kernels_in_use());
    }

    const Geometry& geometry() const { return layer_->geometry(); }

    Tensor bits(const Context* context, size_t rank) const {
        const Value* value = input(api_, context, 0);
        if (value == nullptr) refuse("X is missing");
        Tensor x = tensor_of(api_, value, ort::kUint32, "X");
        const int64_t words = geometry().input_words();
        if (x.sizes.size() != rank || x.sizes[rank == 4 ? 2 : 1] != words)
            refuse("X is " + text_of(x.sizes) + "; expected " + (rank == 4 ? "[N, H, " : "[N, ") +
                   std::to_string(words) + (rank == 4 ? ", W]" : "]"));
        refuse_variable(api_, context, 4, "slope", has_slope_);
        refuse_variable(api_, context, 6, "slope_after", has_slope_after_);
        refuse_variable(api_, context, 7, "sign_scale", has_sign_affine_);
        refuse_variable(api_, context, 8, "sign_bias", has_sign_affine_);
        return x;
    }

    const float* residual(const Context* context, const std::vector<int64_t>& sizes) const {
        const Value* value = input(api_, context, 5);
        if (value == nullptr) return nullptr;
        const Tensor tensor = tensor_of(api_, value, ort::kFloat, "residual");
        if (tensor.sizes != sizes)
            refuse("residual is " + text_of(tensor.sizes) + "; expected " + text_of(sizes) + " as the output");
        return tensor.as<float>();
    }

    // Threads of the session's own pool. A failure to start them is met by running here.
    struct Pool {
        const Api* api;
        const Context* context;

        ParallelFor parallel_for() {
            return {[](void* self, void (*body)(void*, size_t), size_t count, void* data) {
                        const Pool& pool = *static_cast<const Pool*>(self);
                        check(*pool.api, pool.api->parallel_for(pool.context, body, count, data));
                    },
                    this};
        }
    };

    Api api_;
    std::unique_ptr<Layer> layer_;

   private:
    void read_form(const Info* info, Geometry* g) const {
        constexpr int64_t most = 1 << 16;
        const auto strides = attributes_within(api_, info, "strides", {1, 1}, 1, most);
        const auto dilations = attributes_within(api_, info, "dilations", {1, 1}, 1, most);
        const auto pads = attributes_within(api_, info, "pads", {0, 0, 0, 0}, 0, most);
        g->stride_y = strides[0];
        g->stride_x = strides[1];
        g->dilation_y = dilations[0];
        g->dilation_x = dilations[1];
        g->top = pads[0];
        g->left = pads[1];
        g->bottom = pads[2];
        g->right = pads[3];
        g->groups = attribute_within(api_, info, "group", 1, 1, kMostProducts);
        g->pad_value = static_cast<int>(attribute_within(api_, info, "pad_value", 0, -1, 1));
    }

    bool has_slope_, has_slope_after_, has_sign_affine_;
};

class BinaryConv : public BinaryLayer {
   public:
    static constexpr const char* kName = "BinaryConv";

    BinaryConv(const Api& api, const Info* info) : BinaryLayer(api, info, 4) {}

    void run(Context* context) const {
        const Tensor x = bits(context, 4);
        const Geometry& g = geometry();
        const int64_t batch = x.sizes[0], height = x.sizes[1], width = x.sizes[3];
        // Before the output's size, which is computed from sums of these.
        if (height > kMostOffset || width > kMostOffset) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const int64_t padded = times(times(height + g.top + g.bottom, g.input_words()), width + g.left + g.right);
        if (padded > kMostOffset) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const int64_t rows = g.output_height(height), columns = g.output_width(width);
        if (rows < 1 || columns < 1)
            refuse("X is " + text_of(x.sizes) + ", smaller with its padding than the kernel");
        const std::vector<int64_t> sizes{batch, rows, columns, g.outputs};
        const float* added = residual(context, sizes);
        auto* y = static_cast<float*>(output(api_, context, 0, sizes));
        auto* out = static_cast<uint32_t*>(output(api_, context, 1, {batch, rows, g.output_words(), columns}));
        if (y == nullptr && out == nullptr) refuse("the node has neither output");
        Pool pool{&api_, context};
        layer_->run(x.as<uint32_t>(), batch, height, width, added, y, out, pool.parallel_for());
    }
};

class BinaryGemm : public BinaryLayer {
   public:
    static constexpr const char* kName = "BinaryGemm";

    BinaryGemm(const Api& api, const Info* info) : BinaryLayer(api, info, 2) {}

    void run(Context* context) const {
        static thread_local std::vector<uint32_t> in_buffer, out_buffer;
        const Tensor x = bits(context, 2);
        const Geometry& g = geometry();
        const int64_t batch = x.sizes[0], words = g.input_words(), out_words = g.output_words();
        if (times(batch, words) > kMostOffset) refuse("X is " + text_of(x.sizes) + ", which is too large");
        const std::vector<int64_t> sizes{batch, g.outputs};
        const float* added = residual(context, sizes);
        auto* y = static_cast<float*>(output(api_, context, 0, sizes));
        auto* out = static_cast<uint32_t*>(output(api_, context, 1, {batch, out_words}));
        if (y == nullptr && out == nullptr) refuse("the node has neither output");
        if (batch == 0) return;
        Pool pool{&api_, context};
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
    static const ort::CustomOp binarize = make<Binarize>(), conv = make<BinaryConv>(), gemm = make<BinaryGemm>();
    static const ort::CustomOp* const all[] = {&binarize, &conv, &gemm};
    *count = sizeof all / sizeof *all;
    return all;
}

}  // namespace edgefold
