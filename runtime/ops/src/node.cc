#include "node.h"

#include <atomic>
#include <memory>
#include <new>

namespace edgefold {

using ort::Api;
using ort::Context;
using ort::Info;
using ort::Status;
using ort::Value;

namespace {

constexpr int64_t kMostElements = int64_t{1} << 40;

}  // namespace

void refuse(const std::string& what) { throw Invalid(what); }

void check(const Api& api, Status* status) {
    if (status == nullptr) return;
    const std::string text = api.message(status);
    api.release(status);
    refuse(text);
}

std::string text_of(const int64_t* begin, const int64_t* end) {
    std::string text = "[";
    for (const int64_t* size = begin; size != end; ++size) text += (size != begin ? ", " : "") + std::to_string(*size);
    return text + "]";
}

int64_t times(int64_t a, int64_t b) {
    if (a < 0 || b < 0 || (b != 0 && a > kMostElements / b)) refuse("a tensor would be too large");
    return a * b;
}

int64_t Tensor::count() const {
    int64_t count = 1;
    for (const int64_t size : sizes) count = times(count, size);
    return count;
}

Tensor tensor_of(const Api& api, const Value* value, ort::ElementType type, const char* name) {
    ort::Shape* shape = nullptr;
    check(api, api.shape(value, &shape));
    struct Release {
        const Api* api;
        void operator()(ort::Shape* given) const { api->release(given); }
    };
    const std::unique_ptr<ort::Shape, Release> owner(shape, Release{&api});
    int came = 0;
    size_t rank = 0;
    check(api, api.element_type(shape, &came));
    check(api, api.rank(shape, &rank));
    if (came != type) refuse(std::string(name) + " has an element type that the operator does not take");
    if (rank > Sizes::kMost) refuse(std::string(name) + " has " + std::to_string(rank) + " axes");
    Tensor tensor;
    tensor.sizes = Sizes(rank, 0);
    check(api, api.sizes(shape, tensor.sizes.data(), rank));
    void* data = nullptr;
    check(api, api.data(value, &data));
    tensor.data = data;
    return tensor;
}

namespace {

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

}  // namespace

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
    if (tensor.sizes != Sizes{channels})
        refuse(std::string(name) + " is " + text_of(tensor.sizes) + "; expected [" + std::to_string(channels) + "]");
    return {tensor.as<float>(), tensor.as<float>() + channels};
}

const Value* input(const Api& api, const Context* context, size_t i) {
    size_t count = 0;
    check(api, api.input_count(context, &count));
    if (i >= count) return nullptr;
    const Value* value = nullptr;
    check(api, api.input(context, i, &value));
    return value;
}

void* output(const Api& api, Context* context, size_t i, const Sizes& sizes) {
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

void refuse_variable(const Api& api, const Context* context, size_t i, const char* name, bool known) {
    if (!known && input(api, context, i) != nullptr) refuse(std::string(name) + " is not a constant");
}

const Kernels& kernels_in_use() {
    const Kernels* kernels = chosen_kernels();
    if (kernels == nullptr) refuse("EDGEFOLD_ISA names no kernels of this machine");
    return *kernels;
}

float required_float(const Api& api, const Info* info, const char* name) {
    float value = 0;
    if (!succeeds(api, api.attribute(info, name, &value))) {
        refuse_other_type(api, info, name);
        refuse(std::string(name) + " is missing");
    }
    return value;
}

std::string required_string(const Api& api, const Info* info, const char* name) {
    size_t size = 0;
    succeeds(api, api.attribute(info, name, static_cast<char*>(nullptr), &size));
    if (size == 0) {
        refuse_other_type(api, info, name);
        refuse(std::string(name) + " is missing");
    }
    std::string value(size, '\0');
    check(api, api.attribute(info, name, value.data(), &size));
    value.resize(size == 0 ? 0 : size - 1);  // the final zero
    return value;
}

ParallelFor Pool::parallel_for() {
    return {[](void* self, void (*body)(void*, size_t), size_t count, void* data) {
                // An exception must not leave the body: there are threads and C code below it.
                struct Job {
                    void (*body)(void*, size_t);
                    void* data;
                    std::atomic<bool> failed{false};
                } job{body, data};
                const auto run = [](void* given, size_t i) {
                    Job& own = *static_cast<Job*>(given);
                    try {
                        own.body(own.data, i);
                    } catch (...) {
                        own.failed = true;
                    }
                };
                const Pool& pool = *static_cast<const Pool*>(self);
                check(*pool.api_, pool.api_->parallel_for(pool.context_, run, count, &job));
                if (job.failed) throw std::bad_alloc();  // there is nothing else that a body does not survive
            },
            this};
}

}  // namespace edgefold
