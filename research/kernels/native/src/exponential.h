// Powers of two and hyperbolic tangents of vectors.
#pragma once

#include <cstdint>

#include "simd.h"

namespace flagship::FLAGSHIP_TARGET {

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

constexpr float kLog2E = 1.44269504088896341f;

// 2^x = power · (1 + more), with x cut off at ±126.
struct Power {
  Vec power, more;
};

// Cephes' exp2f: a polynomial of x's distance from the nearest whole number, right to 2e-7.
inline Power PowerOfTwo(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5·2²³: what is added to it is rounded to a whole number
  x = x < -126.0f ? Vec{} - 126.0f : x;
  x = x > 126.0f ? Vec{} + 126.0f : x;
  const Vec rounded = x + kRound, r = x - (rounded - kRound);
  Vec p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  return {(Vec)(((IntVec)rounded << 23) + (127 << 23)), p * r};
}

// e^x; 0 below 2^−126, which −∞ is as well.
inline Vec Exp(Vec x) {
  const Vec y = x * kLog2E;
  const auto [power, more] = PowerOfTwo(y);
  return y < -126.0f ? Vec{} : power + power * more;
}

// (e^2x − 1) / (e^2x + 1), where the difference loses no digits for a small x.
inline Vec Tanh(Vec x) {
  const auto [power, more] = PowerOfTwo(x * (2.0f * kLog2E));
  const Vec raised = power * more + (power - 1.0f);
  // Beyond ±44 the quotient is that of 2^±126.
  return raised / (raised + 2.0f);
}

}  // namespace flagship::FLAGSHIP_TARGET
