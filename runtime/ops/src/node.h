// What a node says and what a run is given, read through ONNX Runtime's interface. Whatever is wrong is thrown as
// `Invalid`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "layer.h"
#include "ort_abi.h"

namespace edgefold {

constexpr int64_t kMostProducts = int64_t{1} << 24;  // sums of integers up to here are exact as float32
constexpr int64_t kMostCells = int64_t{1} << 28;     // of one image with its padding; offsets are 32 bits wide
constexpr int64_t kMostOutputs = int64_t{1} << 30;  // floats of one image: a node of few bytes must not take all memory

class Invalid : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const std::string& what);

// Throws what a status says; the status is released.
void check(const ort::Api& api, ort::Status* status);

// A tensor's sizes, in place: a run allocates nothing.
class Sizes {
   public:
    static constexpr size_t kMost = 8;

    Sizes() = default;
    Sizes(std::initializer_list<int64_t> sizes) : rank_(sizes.size()) { std::copy(sizes.begin(), sizes.end(), sizes_); }
    Sizes(size_t rank, int64_t size) : rank_(rank) { std::fill_n(sizes_, rank, size); }

    size_t size() const { return rank_; }
    int64_t* data() { return sizes_; }
    const int64_t* data() const { return sizes_; }
    const int64_t* begin() const { return sizes_; }
    const int64_t* end() const { return sizes_ + rank_; }
    int64_t operator[](size_t i) const { return sizes_[i]; }
    int64_t back() const { return sizes_[rank_ - 1]; }
    bool operator==(const Sizes& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
    bool operator!=(const Sizes& other) const { return !(*this == other); }

   private:
    int64_t sizes_[kMost] = {};
    size_t rank_ = 0;
};

std::string text_of(const int64_t* begin, const int64_t* end);
template <typename T>
std::string text_of(const T& sizes) {
    return text_of(sizes.data(), sizes.data() + sizes.size());
}

// a * b. Refuses what no tensor can have.
int64_t times(int64_t a, int64_t b);

struct Tensor {
    Sizes sizes;
    const void* data = nullptr;

    int64_t count() const;
    template <typename T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

Tensor tensor_of(const ort::Api& api, const ort::Value* value, ort::ElementType type, const char* name);

// Attributes; an absent one is the fallback, one of another type is refused.
int64_t attribute(const ort::Api& api, const ort::Info* info, const char* name, int64_t fallback);
int64_t attribute_within(const ort::Api& api, const ort::Info* info, const char* name, int64_t fallback, int64_t least,
                         int64_t most);
std::vector<int64_t> attributes_within(const ort::Api& api, const ort::Info* info, const char* name,
                                       std::vector<int64_t> fallback, int64_t least, int64_t most);
float required_float(const ort::Api& api, const ort::Info* info, const char* name);
std::string required_string(const ort::Api& api, const ort::Info* info, const char* name);

// The constant input `i`, or nothing where it is left out.
bool constant(const ort::Api& api, const ort::Info* info, size_t i, ort::ElementType type, const char* name,
              Tensor* out);
std::vector<float> channelwise(const ort::Api& api, const ort::Info* info, size_t i, const char* name, int64_t channels,
                               bool required);

// What a run is given: input `i`, null where it is absent; memory of output `i`, null where nothing reads it.
const ort::Value* input(const ort::Api& api, const ort::Context* context, size_t i);
void* output(const ort::Api& api, ort::Context* context, size_t i, const Sizes& sizes);

// Refuses an input that had to be a constant, and was taken for absent because it is none.
void refuse_variable(const ort::Api& api, const ort::Context* context, size_t i, const char* name, bool known);

// RegisterCustomOps has refused an EDGEFOLD_ISA that names none, but it may have been set since.
const Kernels& kernels_in_use();

// Threads of the session's own pool.
class Pool {
   public:
    Pool(const ort::Api& api, const ort::Context* context) : api_(&api), context_(context) {}
    ParallelFor parallel_for();

   private:
    const ort::Api* api_;
    const ort::Context* context_;
};

}  // namespace edgefold
