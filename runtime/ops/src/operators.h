// The operators as ONNX Runtime sees them.
#pragma once

#include "ort_abi.h"

namespace edgefold {

// The operators of the domain, `count` of them; they live as long as the library.
const ort::CustomOp* const* operators(size_t* count);

}  // namespace edgefold
