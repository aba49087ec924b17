// What a kernel computes, and the table of kernels: one an instruction set, chosen when the library is loaded.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgefold {

// What stands behind the integer sum of each output channel; null where a step is left out. See ../README.md.
struct Epilogue {
    const float* scale;
    const float* bias;
    const float* slope;
    const float* slope_after;
    const float* sign_scale;
    const float* sign_bias;
};

// One row of outputs for one block of `lanes` output channels.
//
// Output x reads cells[offsets[t] + x * step], t = 0 .. terms - 1, against weights[t * lanes + lane]; offsets and step
// are in cells. For binary products a cell is a word of 32 bits, and the integer sum is base - 2 * (bits that differ).
// `base` is by column: `edges` holds [lanes] integers for each of the first `left` and, behind them, of the last
// `right` columns; `interior` those of all the columns between. For products on a grid a cell is an int16, a term reads
// two that lie side by side, its weight holds the two factors (the first in the lower half), and there are no bases.
struct Row {
    const void* cells;
    const int32_t* offsets;
    const uint32_t* weights;
    int64_t terms;
    int64_t step;
    int64_t width;
    const int32_t* interior;
    const int32_t* edges;
    int64_t left;
    int64_t right;
    bool odd;  // whether a base may be an odd number

    Epilogue epilogue;      // already at the block's first channel; readable for all lanes
    int64_t channels;       // how many of the lanes are real
    int64_t pixel_stride;   // floats from one pixel to the next in residual and y
    const float* residual;  // null: none
    float* y;               // null: not wanted
    // Null: not wanted. The byte with the block's first channel in the first pixel's word; words of a row are adjacent.
    // Only where the block's channels begin on a byte of their word and do not leave it.
    uint8_t* bits;
};

// Signs of `pixels` pixels of `channels` floats (NHWC) in `groups` groups, as words[(word * pixels) + pixel].
struct Signs {
    const float* x;
    int64_t pixels;
    int64_t channels;
    int64_t groups;
    const float* scale;  // null together with bias: none
    const float* bias;
    uint32_t* words;
};

// Maximum or mean of `channels` floats over the windows of one row of outputs. A window's first position may lie
// outside the image, [height][width][channels]; some position lies inside.
struct Pooling {
    const float* image;
    float* y;
    int64_t height, width, channels;
    int64_t columns;       // of the output
    int64_t top;           // where the row's windows begin
    int64_t left, stride;  // where the first one begins, and how far apart they are
    int64_t window_height, window_width;
    bool mean;
};

struct Kernels {
    const char* name;
    int64_t lanes;  // a multiple of 8, at most 32
    bool paired;  // binary weights lie as [terms / 2][lanes][2], a last odd term as [lanes], instead of [terms][lanes]
    void (*binary_row)(const Row&);
    void (*grid_row)(const Row&);
    void (*channelwise_row)(const Row&);
    void (*binarize)(const Signs&);
    // out[i] = x[i] * scale, within ±levels and rounded, halves to even; NaN is -levels.
    void (*snap)(const float* x, int64_t count, float scale, float levels, int16_t* out);
    void (*pool)(const Pooling&);
};

// The kernels that this processor can run, best first; never empty.
const Kernels* const* available_kernels(size_t* count);

// The best kernels, or those that the environment variable EDGEFOLD_ISA names. Null where it names none of the
// available ones.
const Kernels* chosen_kernels();

}  // namespace edgefold
