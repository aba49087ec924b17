// For x86 with the scalar popcnt instruction and nothing better.
#include "kernel_scalar.h"

namespace edgefold {
namespace {

inline uint64_t count(uint64_t x) { return static_cast<uint64_t>(__builtin_popcountll(x)); }

}  // namespace

extern const Kernels kPopcnt;
const Kernels kPopcnt = {
    "popcnt",        kLanes, true, scalar_binary_row<count>, scalar_grid_row, scalar_channelwise_row,
    scalar_binarize, snap,   pool};

}  // namespace edgefold
