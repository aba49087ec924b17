// What ONNX Runtime calls when a session is given this library.
#include <cstdlib>
#include <string>

#include "kernels.h"
#include "operators.h"

#if defined(_WIN32)
#define EDGEFOLD_EXPORT __declspec(dllexport)
#else
#define EDGEFOLD_EXPORT __attribute__((visibility("default")))
#endif

namespace {

constexpr const char* kDomain = "edgefold";

// One domain for every session of the process: sessions keep pointers to it and to the operators.
ort::Status* domain_of(const ort::Api& api, ort::Domain** out) {
    static ort::Domain* domain = nullptr;
    static ort::Status* failure = [&]() -> ort::Status* {
        if (ort::Status* status = api.create_domain(kDomain, &domain)) return status;
        size_t count = 0;
        const ort::CustomOp* const* all = edgefold::operators(&count);
        for (size_t i = 0; i < count; ++i)
            if (ort::Status* status = api.add_operator(domain, all[i])) return status;
        return nullptr;
    }();
    *out = domain;
    return failure == nullptr ? nullptr : api.create_status(ort::kFail, "edgefold: the operators cannot be registered");
}

std::string unknown_kernels() {
    size_t count = 0;
    const edgefold::Kernels* const* all = edgefold::available_kernels(&count);
    std::string text = std::string("edgefold: EDGEFOLD_ISA is '") + std::getenv("EDGEFOLD_ISA") + "'; this machine has";
    for (size_t i = 0; i < count; ++i) text += std::string(i != 0 ? ", " : " ") + all[i]->name;
    return text;
}

}  // namespace

extern "C" {

EDGEFOLD_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    const void* const* table = base->get_api(ort::kApiVersion);
    if (table == nullptr) {
        // The first version's table begins like all later ones; a status needs no more.
        const std::string text =
            std::string("edgefold: ONNX Runtime ") + base->version() + " is too old; expected 1.17 or newer";
        return ort::Api(base->get_api(1)).create_status(ort::kFail, text.c_str());
    }
    const ort::Api api(table);
    if (edgefold::chosen_kernels() == nullptr)
        return api.create_status(ort::kInvalidArgument, unknown_kernels().c_str());
    ort::Domain* domain = nullptr;
    if (ort::Status* status = domain_of(api, &domain)) return status;
    return api.add_domain(options, domain);
}

// The name of the kernels in use, or null where EDGEFOLD_ISA names none of the machine's.
EDGEFOLD_EXPORT const char* edgefold_isa(void) {
    const edgefold::Kernels* kernels = edgefold::chosen_kernels();
    return kernels == nullptr ? nullptr : kernels->name;
}

}  // extern "C"
