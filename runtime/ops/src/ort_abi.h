// The few parts of ONNX Runtime's C interface that the operators need, declared by hand from its published order, so
// that no header of one of its versions is needed. The table of functions only ever grows at its end.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

struct Status;  // null is success; owned by whoever gets it
struct SessionOptions;
struct Domain;
struct Info;     // of a kernel that is being created
struct Context;  // of a run
struct Value;
struct Shape;  // a tensor's element type and dimensions

constexpr uint32_t kApiVersion = 17;  // the first with kernels that return a status

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum ElementType { kFloat = 1, kInt8 = 3, kUint32 = 12 };
enum Characteristic { kRequired = 0, kOptional = 1 };

struct ApiBase {
    const void* const* (*get_api)(uint32_t version);
    const char* (*version)();
};

// Functions of the table by their place in it.
class Api {
   public:
    explicit Api(const void* const* table) : table_(table) {}

    template <typename Result, typename... Arguments>
    Result call(size_t index, Arguments... arguments) const {
        return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table_[index]))(arguments...);
    }

    Status* create_status(ErrorCode code, const char* text) const {
        return call<Status*>(0, static_cast<int>(code), text);
    }
    const char* message(const Status* status) const { return call<const char*>(2, status); }
    void release(Status* status) const { call<void>(93, status); }

    Status* create_domain(const char* name, Domain** out) const { return call<Status*>(26, name, out); }
    Status* add_operator(Domain* domain, const void* op) const { return call<Status*>(27, domain, op); }
    Status* add_domain(SessionOptions* options, Domain* domain) const { return call<Status*>(28, options, domain); }

    Status* attribute(const Info* info, const char* name, int64_t* out) const {
        return call<Status*>(86, info, name, out);
    }
    Status* attribute(const Info* info, const char* name, float* out) const {
        return call<Status*>(85, info, name, out);
    }
    Status* attribute(const Info* info, const char* name, char* out, size_t* size) const {
        return call<Status*>(87, info, name, out, size);
    }
    Status* attribute(const Info* info, const char* name, float* out, size_t* size) const {
        return call<Status*>(162, info, name, out, size);
    }
    Status* attribute(const Info* info, const char* name, int64_t* out, size_t* size) const {
        return call<Status*>(163, info, name, out, size);
    }
    Status* input_count(const Info* info, size_t* out) const { return call<Status*>(230, info, out); }
    Status* output_count(const Info* info, size_t* out) const { return call<Status*>(231, info, out); }
    Status* constant_input(const Info* info, size_t i, int* is_constant, const Value** out) const {
        return call<Status*>(249, info, i, is_constant, out);
    }

    Status* input_count(const Context* context, size_t* out) const { return call<Status*>(88, context, out); }
    Status* output_count(const Context* context, size_t* out) const { return call<Status*>(89, context, out); }
    Status* input(const Context* context, size_t i, const Value** out) const {
        return call<Status*>(90, context, i, out);
    }
    Status* output(Context* context, size_t i, const int64_t* sizes, size_t rank, Value** out) const {
        return call<Status*>(91, context, i, sizes, rank, out);
    }
    Status* parallel_for(const Context* context, void (*body)(void*, size_t), size_t count, void* data) const {
        return call<Status*>(274, context, body, count, static_cast<size_t>(0), data);
    }

    Status* data(const Value* value, void** out) const { return call<Status*>(51, const_cast<Value*>(value), out); }
    Status* shape(const Value* value, Shape** out) const { return call<Status*>(65, value, out); }
    Status* element_type(const Shape* shape, int* out) const { return call<Status*>(60, shape, out); }
    Status* rank(const Shape* shape, size_t* out) const { return call<Status*>(61, shape, out); }
    Status* sizes(const Shape* shape, int64_t* out, size_t rank) const { return call<Status*>(62, shape, out, rank); }
    void release(Shape* shape) const { call<void>(99, shape); }

   private:
    const void* const* table_;
};

// One operator, as version 17 of the interface lays it out; later fields are null.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, const void* const*, const Info*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*inputs)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*outputs)(const CustomOp*);
    void (*compute)(void*, Context*);
    void (*destroy)(void*);
    int (*input_characteristic)(const CustomOp*, size_t);
    int (*output_characteristic)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_alike)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_alike)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, const void* const*, const Info*, void**);
    Status* (*compute_v2)(void*, Context*);
    Status* (*infer_shapes)(const CustomOp*, void*);
    int (*first_version)(const CustomOp*);
    int (*last_version)(const CustomOp*);
    size_t (*may_inplace)(int**, int**);
    void (*release_may_inplace)(int*, int*);
    size_t (*aliases)(int**, int**);
    void (*release_aliases)(int*, int*);
};

static_assert(sizeof(void*) != 8 || sizeof(CustomOp) == 208, "the interface's structure has 208 bytes");

}  // namespace ort
