// Convolutions with 3×3 kernels and stride 1 by Winograd's F(2×2, 3×3): 16 products where the definition has 36.
#pragma once

#include "conv.h"

namespace flagship::FLAGSHIP_TARGET {

// Whether it pays: a 3×3 kernel, stride 1, and enough channels and pixels for what the transforms take.
bool WinogradPays(const ConvShape& shape, bool weight_gradient);

// y, or with `turned` the gradient to x of the convolution that `shape` describes: `from` is then g, and `to` is x.
void WinogradForward(const ConvShape& shape, const float* from, const float* kernel, bool turned, float* to,
                     const Pool&);
void WinogradWeightGradient(const ConvShape& shape, const float* x, const float* g, float* kernel, const Pool&);

}  // namespace flagship::FLAGSHIP_TARGET
