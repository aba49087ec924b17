// For any processor: bits are counted by adding neighbours.
#include "kernel_scalar.h"

namespace edgefold {
namespace {

inline uint64_t count_by_halves(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return x * 0x0101010101010101u >> 56;
}

}  // namespace

extern const Kernels kPortable;
const Kernels kPortable = {
    "portable",      kLanes, true, scalar_binary_row<count_by_halves>, scalar_grid_row, scalar_channelwise_row,
    scalar_binarize, snap,   pool};

}  // namespace edgefold
