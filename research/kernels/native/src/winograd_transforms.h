// Lavin and Gray 2016, section 4.1, with their matrices. A 2×2 square of outputs reads 4×4 inputs; with
//   y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A
// the 16 products are matrix products over channels. The weight gradient is the same trilinear form opened elsewhere:
//   ∂k = Gᵀ [Σ (Bᵀ d B) ⊙ (A g Aᵀ)] G.
#pragma once

#include <algorithm>
#include <cstdint>

#include "product.h"

namespace flagship::FLAGSHIP_TARGET {

inline constexpr int kPoints = 16;

// The squares of an output, row by row, image after image.
struct Squares {
  int64_t batch, rows, columns;     // of the images of squares
  int64_t height, width, channels;  // of what they read
  int64_t low_y, low_x;
  int64_t count() const { return batch * rows * columns; }
};

// v (16 points, step) ← Bᵀ d B of the 4×4 numbers that a square reads, `channels` numbers at each point; zeros outside.
// `apart` is how far from each other vectors of kLanes channels are.
inline void TransformInput(const Squares& s, const float* x, int64_t square, const float* zeros, float* v, int64_t step,
                           int64_t apart = kLanes) {
  const int64_t column = square % s.columns, row = square / s.columns % s.rows;
  const float* image = x + square / (s.columns * s.rows) * s.height * s.width * s.channels;
  const int64_t top = 2 * row - s.low_y, left = 2 * column - s.low_x;
  const float* d[4][4];
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      const bool inside = top + i >= 0 && top + i < s.height && left + j >= 0 && left + j < s.width;
      d[i][j] = inside ? image + ((top + i) * s.width + left + j) * s.channels : zeros;
    }
  }
  const auto transform = [&](int64_t c, auto load, auto store) {
    Vec t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec d0 = load(d[0][j] + c), d1 = load(d[1][j] + c), d2 = load(d[2][j] + c), d3 = load(d[3][j] + c);
      t[0][j] = d0 - d2;
      t[1][j] = d1 + d2;
      t[2][j] = d2 - d1;
      t[3][j] = d1 - d3;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      float* to = v + 4 * i * step + c / kLanes * apart;
      store(to, t[i][0] - t[i][2]);
      store(to + step, t[i][1] + t[i][2]);
      store(to + 2 * step, t[i][2] - t[i][1]);
      store(to + 3 * step, t[i][1] - t[i][3]);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= s.channels; c += kLanes) transform(c, Load, Store);
  if (const int64_t rest = s.channels - c; rest > 0) {
    transform(
        c, [rest](const float* from) { return LoadSome(from, rest); },
        [rest](float* to, Vec value) { StoreSome(to, value, rest); });
  }
}

// y (2×2 pixels) ← Aᵀ m A of products m (16 points, step); pixels without a place are null.
inline void TransformOutput(const float* m, int64_t step, int64_t outputs, float* const (&y)[2][2]) {
  const auto transform = [&](int64_t o, auto load, auto store) {
    Vec t[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec m0 = load(m + (0 + j) * step + o), m1 = load(m + (4 + j) * step + o);
      const Vec m2 = load(m + (8 + j) * step + o), m3 = load(m + (12 + j) * step + o);
      t[0][j] = m0 + m1 + m2;
      t[1][j] = m1 - m2 - m3;
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      if (y[i][0] != nullptr) store(y[i][0] + o, t[i][0] + t[i][1] + t[i][2]);
      if (y[i][1] != nullptr) store(y[i][1] + o, t[i][1] - t[i][2] - t[i][3]);
    }
  };
  int64_t o = 0;
  for (; o + kLanes <= outputs; o += kLanes) transform(o, Load, Store);
  if (const int64_t rest = outputs - o; rest > 0) {
    transform(
        o, [rest](const float* from) { return LoadSome(from, rest); },
        [rest](float* to, Vec value) { StoreSome(to, value, rest); });
  }
}

// z (16 points, step) ← A g Aᵀ of the 2×2 gradients of a square; those without a place are null. `apart` is how far
// from each other blocks of kColumns outputs are.
inline void TransformGradient(const float* const (&g)[2][2], int64_t outputs, float* z, int64_t step, int64_t apart) {
  const auto transform = [&](int64_t o, auto load, auto store) {
    Vec t[4][2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Vec g0 = g[0][j] == nullptr ? Vec{} : load(g[0][j] + o);
      const Vec g1 = g[1][j] == nullptr ? Vec{} : load(g[1][j] + o);
      t[0][j] = g0;
      t[1][j] = g0 + g1;
      t[2][j] = g0 - g1;
      t[3][j] = -g1;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      float* to = z + 4 * i * step + o / kColumns * apart + o % kColumns;
      store(to, t[i][0]);
      store(to + step, t[i][0] + t[i][1]);
      store(to + 2 * step, t[i][0] - t[i][1]);
      store(to + 3 * step, -t[i][1]);
    }
  };
  int64_t o = 0;
  for (; o + kLanes <= outputs; o += kLanes) transform(o, Load, Store);
  if (const int64_t rest = outputs - o; rest > 0) {
    transform(
        o, [rest](const float* from) { return LoadSome(from, rest); },
        [rest](float* to, Vec value) { StoreSome(to, value, rest); });
  }
}

// Some rows of kernel (3, 3, C, O) → G k Gᵀ as packed columns of a block: to (16, …, depth, kColumns), `step` numbers
// between points. With `turned`, the kernel of the input gradient: positions turned about, depth O and columns C.
inline constexpr int64_t kPiece = 16;  // rows: a cache line of a turned kernel

inline void TransformKernel(const float* kernel, int64_t channels, int64_t outputs, bool turned, int64_t block,
                            int64_t start, float* to, int64_t step) {
  const int64_t depth = turned ? outputs : channels, columns = turned ? channels : outputs, size = channels * outputs;
  const int64_t first = block * kColumns, have = std::min<int64_t>(kColumns, columns - first);
  const int64_t rows = std::min(kPiece, depth - start);
  float k[9][kPiece][kColumns];
  for (int position = 0; position < 9; ++position) {
    const float* from = kernel + (turned ? 8 - position : position) * size;
    for (int64_t row = 0; row < rows; ++row) {
      if (!turned) std::copy_n(from + (start + row) * outputs + first, have, k[position][row]);
      std::fill(k[position][row] + have, k[position][row] + kColumns, 0.0f);
    }
    for (int64_t n = 0; turned && n < have; ++n) {
      const float* line = from + (first + n) * outputs + start;
      for (int64_t row = 0; row < rows; ++row) k[position][row][n] = line[row];
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int n = 0; n < kColumns; n += kLanes) {
      Vec t[4][3];
      for (int q = 0; q < 3; ++q) {
        const Vec k0 = Load(k[q][row] + n), k1 = Load(k[3 + q][row] + n), k2 = Load(k[6 + q][row] + n);
        t[0][q] = k0;
        t[1][q] = 0.5f * (k0 + k1 + k2);
        t[2][q] = 0.5f * (k0 - k1 + k2);
        t[3][q] = k2;
      }
      float* place = to + (start + row) * kColumns + n;
      for (int i = 0; i < 4; ++i, place += 4 * step) {
        Store(place, t[i][0]);
        Store(place + step, 0.5f * (t[i][0] + t[i][1] + t[i][2]));
        Store(place + 2 * step, 0.5f * (t[i][0] - t[i][1] + t[i][2]));
        Store(place + 3 * step, t[i][2]);
      }
    }
  }
}

// The four pixels of a square in an image of (height, width, channels), or null where there is none.
template <typename T>
inline void PixelsOf(const Squares& s, int64_t square, T* images, int64_t height, int64_t width, int64_t channels,
                     T* (&pixel)[2][2]) {
  const int64_t column = square % s.columns, row = square / s.columns % s.rows;
  T* image = images + square / (s.columns * s.rows) * height * width * channels;
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 2; ++j) {
      const bool inside = 2 * row + i < height && 2 * column + j < width;
      pixel[i][j] = inside ? image + ((2 * row + i) * width + 2 * column + j) * channels : nullptr;
    }
  }
}

}  // namespace flagship::FLAGSHIP_TARGET
