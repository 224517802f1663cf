// The three operations of a 2-D convolution in float32, (B, H, W, C) with (h, w, C, O): see research/kernels/conv.
#pragma once

#include <cstdint>

#include "pool.h"

namespace flagship {

// Sizes of a convolution, whichever of its three operands is the result. out = (in + low + high − kernel) / stride + 1.
struct ConvShape {
  int64_t batch, height, width, channels;        // of x
  int64_t kernel_height, kernel_width, outputs;  // of the kernel, with `channels`
  int64_t out_height, out_width;                 // of y, with `batch` and `outputs`
  int64_t stride_y, stride_x, low_y, low_x;      // a negative low cuts
};

#define FLAGSHIP_CONV                                                                                         \
  void ConvForward(const ConvShape& shape, const float* x, const float* kernel, float* y, const Pool&);       \
  void ConvInputGradient(const ConvShape& shape, const float* g, const float* kernel, float* x, const Pool&); \
  void ConvWeightGradient(const ConvShape& shape, const float* x, const float* g, float* kernel, const Pool&);

namespace avx2 {
FLAGSHIP_CONV
}
namespace avx512 {
FLAGSHIP_CONV
}

}  // namespace flagship
