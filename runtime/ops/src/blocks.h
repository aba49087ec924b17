// A row of pixels, taken in blocks that a kernel keeps in registers.
#pragma once

#include <utility>

#include "kernels.h"

namespace edgefold {
namespace {

// Calls F::run<P>(row, x) over the row in blocks of P <= MOST pixels, as even as can be.
template <int MOST, typename F, int... P>
inline void in_blocks(const Row& row, std::integer_sequence<int, P...>) {
    static constexpr void (*run[])(const Row&, int64_t) = {F::template run<P + 1>...};
    const int64_t blocks = (row.width + MOST - 1) / MOST;
    for (int64_t i = 0, x = 0; i < blocks; ++i) {
        const int64_t end = (i + 1) * row.width / blocks;
        run[end - x - 1](row, x);
        x = end;
    }
}

template <int MOST, typename F>
inline void in_blocks(const Row& row) {
    in_blocks<MOST, F>(row, std::make_integer_sequence<int, MOST>{});
}

}  // namespace
}  // namespace edgefold
