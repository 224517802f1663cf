// What a pixel reads, in one row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv.h"
#include "place.h"
#include "simd.h"

namespace flagship::FLAGSHIP_TARGET {

// The numbers that an output pixel reads, kernel row after kernel row, with zeros outside the image.
inline void CopyWindow(const ConvShape& s, const float* x, const Place& place, float* to) {
  const int64_t top = place.row * s.stride_y - s.low_y, left = place.column * s.stride_x - s.low_x;
  const int64_t line = s.kernel_width * s.channels;
  const int64_t before = std::min(line, std::max<int64_t>(0, -left) * s.channels);
  const int64_t end = std::max(before, std::min(s.kernel_width, s.width - left) * s.channels);
  const float* image = x + place.image * s.height * s.width * s.channels;
  for (int64_t p = 0; p < s.kernel_height; ++p, to += line) {
    const bool inside = top + p >= 0 && top + p < s.height;
    const int64_t start = ((top + p) * s.width + left) * s.channels;
    for (int64_t n = 0; n < line; n += kLanes) {
      const int64_t some = std::min<int64_t>(kLanes, line - n);
      if (inside && before <= n && n + some <= end) {
        StoreSome(to + n, LoadSome(image + start + n, some), some);
      } else {
        for (int64_t i = n; i < n + some; ++i) to[i] = inside && before <= i && i < end ? image[start + i] : 0.0f;
      }
    }
  }
}

}  // namespace flagship::FLAGSHIP_TARGET
