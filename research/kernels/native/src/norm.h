// Rows normalised over their numbers, in float32: see research/kernels/norm.
#pragma once

#include <cstdint>

#include "pool.h"

namespace flagship {

struct NormShape {
  int64_t rows, width;
  bool layer;  // LayerNorm, else RMSNorm
  float epsilon;
};

// What is not there is null. x, residual, y and total are (rows, width), scale and bias (width), the others (rows).
struct NormForwardArrays {
  const float *x, *residual, *scale, *bias;
  float *y, *total, *mean, *inverse;
};

// The same; to_total is the gradient to x from elsewhere. No two arrays may overlap.
struct NormBackwardArrays {
  const float *x, *mean, *inverse, *scale, *to_y, *to_total;
  float *to_x, *to_scale, *to_bias;
};

#define FLAGSHIP_NORM                                                              \
  void NormForward(const NormShape& shape, const NormForwardArrays&, const Pool&); \
  void NormBackward(const NormShape& shape, const NormBackwardArrays&, const Pool&);

namespace avx2 {
FLAGSHIP_NORM
}
namespace avx512 {
FLAGSHIP_NORM
}

}  // namespace flagship
