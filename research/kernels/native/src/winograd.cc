// Lavin and Gray 2016, section 4.1, with their matrices. A 2×2 square of outputs reads 4×4 inputs; with
//   y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A
// the 16 products are matrix products over channels. The weight gradient is the same trilinear form opened elsewhere:
//   ∂k = Gᵀ [Σ (Bᵀ d B) ⊙ (A g Aᵀ)] G.

#include "winograd.h"

#include <algorithm>
#include <vector>

#include "product.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int kPoints = 16;
constexpr int64_t kBytesAtOnce = 512 << 10;  // of transformed squares and products that a task holds
constexpr int64_t kFewSquares = 256;
constexpr int64_t kLeastAtOnce = 64;         // squares, for a large kernel is read once for each such number
constexpr int64_t kGroups = 16;
constexpr int64_t kSums = 4 << 20;  // numbers in the groups' sums at most

// The squares of an output, row by row, image after image.
struct Squares {
  int64_t batch, rows, columns;  // of the images of squares
  int64_t height, width, channels;          // of what they read
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
  if (const int rest = s.channels - c; rest > 0) {
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
  if (const int rest = outputs - o; rest > 0) {
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
  if (const int rest = outputs - o; rest > 0) {
    transform(
        o, [rest](const float* from) { return LoadSome(from, rest); },
        [rest](float* to, Vec value) { StoreSome(to, value, rest); });
  }
}

// Some rows of kernel (3, 3, C, O) → G k Gᵀ as packed columns of a block: to (16, …, depth, kColumns), `step` numbers
// between points. With `turned`, the kernel of the input gradient: positions turned about, depth O and columns C.
constexpr int64_t kPiece = 16;  // rows: a cache line of a turned kernel

void TransformKernel(const float* kernel, int64_t channels, int64_t outputs, bool turned, int64_t block, int64_t start,
                     float* to, int64_t step) {
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

}  // namespace

bool WinogradPays(const ConvShape& s, bool weight_gradient) {
  const int64_t squares = s.batch * Ceil(s.out_height, 2) * Ceil(s.out_width, 2);
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_y == 1 && s.stride_x == 1 && s.channels >= 16 &&
         s.outputs >= 16 && squares >= (weight_gradient ? kFewSquares : kFewSquares / 4);
}

void WinogradForward(const ConvShape& s, const float* from, const float* kernel, bool turned, float* to,
                     const Pool& pool) {
  const int64_t height = turned ? s.height : s.out_height, width = turned ? s.width : s.out_width;  // of the result
  const int64_t outputs = turned ? s.channels : s.outputs;
  const Squares squares{s.batch, Ceil(height, 2), Ceil(width, 2), turned ? s.out_height : s.height,
                        turned ? s.out_width : s.width, turned ? s.outputs : s.channels,
                        turned ? 2 - s.low_y : s.low_y, turned ? 2 - s.low_x : s.low_x};
  const int64_t depth = squares.channels, blocks = Ceil(outputs, kColumns), pieces = Ceil(depth, kPiece);
  Buffer zeros = Allocate(depth);
  std::fill(zeros.get(), zeros.get() + depth, 0.0f);
  if (squares.count() <= kFewSquares) {
    // All squares at once, so that each block of columns is transformed by the task that needs it, and never leaves its
    // cache.
    const int64_t padded = Ceil(squares.count(), kRows) * kRows;
    Buffer read = Allocate(kPoints * padded * depth);
    pool.Run(padded / kRows, [&](int64_t tile) {
      for (int64_t n = tile * kRows; n < std::min((tile + 1) * kRows, squares.count()); ++n) {
        TransformInput(squares, from, n, zeros.get(), read.get() + n * depth, padded * depth);
      }
    });
    pool.Run(blocks, [&](int64_t block) {
      const int64_t first = block * kColumns, have = std::min<int64_t>(kColumns, outputs - first);
      Buffer columns = Allocate(kPoints * depth * kColumns), products = Allocate(kPoints * padded * kColumns);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        TransformKernel(kernel, s.channels, s.outputs, turned, block, piece * kPiece, columns.get(), depth * kColumns);
      }
      std::vector<const float*> rows(padded);
      std::vector<float*> out(padded);
      for (int point = 0; point < kPoints; ++point) {
        for (int64_t n = 0; n < padded; ++n) {
          rows[n] = n < squares.count() ? read.get() + (point * padded + n) * depth : zeros.get();
          out[n] = products.get() + (point * padded + n) * kColumns;
        }
        Product{1, depth, kColumns, columns.get() + point * depth * kColumns}.Run(rows.data(), out.data(),
                                                                                  padded / kRows, 0);
      }
      for (int64_t n = 0; n < squares.count(); ++n) {
        float* pixel[2][2];
        PixelsOf(squares, n, to + first, height, width, outputs, pixel);
        TransformOutput(products.get() + n * kColumns, padded * kColumns, have, pixel);
      }
    });
    return;
  }
  Buffer packed = Allocate(kPoints * blocks * depth * kColumns);
  pool.Run(blocks * pieces, [&](int64_t task) {
    const int64_t block = task / pieces;
    TransformKernel(kernel, s.channels, s.outputs, turned, block, task % pieces * kPiece,
                    packed.get() + block * depth * kColumns, blocks * depth * kColumns);
  });
  const int64_t fitting = kBytesAtOnce / (kPoints * (depth + outputs) * static_cast<int64_t>(sizeof(float)));
  const int64_t at_once = Ceil(std::max(fitting, kLeastAtOnce), kRows) * kRows;
  pool.Run(Ceil(squares.count(), at_once), [&](int64_t task) {
    const int64_t first = task * at_once, count = std::min(at_once, squares.count() - first);
    const int64_t tiles = Ceil(count, kRows), padded = tiles * kRows;
    Buffer read = Allocate(kPoints * padded * depth), products = Allocate(kPoints * padded * outputs);
    for (int64_t n = 0; n < count; ++n) {
      TransformInput(squares, from, first + n, zeros.get(), read.get() + n * depth, padded * depth);
    }
    std::vector<const float*> rows(padded);
    std::vector<float*> out(padded);
    for (int point = 0; point < kPoints; ++point) {
      for (int64_t n = 0; n < padded; ++n) {
        rows[n] = n < count ? read.get() + (point * padded + n) * depth : zeros.get();
        out[n] = products.get() + (point * padded + n) * outputs;
      }
      const Product product{1, depth, outputs, packed.get() + point * blocks * depth * kColumns};
      for (int64_t block = 0; block < blocks; ++block) product.Run(rows.data(), out.data(), tiles, block);
    }
    for (int64_t n = 0; n < count; ++n) {
      float* pixel[2][2];
      PixelsOf(squares, first + n, to, height, width, outputs, pixel);
      TransformOutput(products.get() + n * outputs, padded * outputs, outputs, pixel);
    }
  });
}

void WinogradWeightGradient(const ConvShape& s, const float* x, const float* g, float* kernel, const Pool& pool) {
  const Squares squares{s.batch, Ceil(s.out_height, 2), Ceil(s.out_width, 2), s.height, s.width, s.channels,
                        s.low_y, s.low_x};
  const int64_t size = s.channels * s.outputs, blocks = Ceil(s.outputs, kColumns);
  const int64_t padded = Ceil(s.channels, kLanes) * kLanes;
  const int64_t fitting = kBytesAtOnce / (kPoints * (padded + kColumns) * static_cast<int64_t>(sizeof(float)));
  const int64_t at_once = std::max<int64_t>(fitting, kLeastAtOnce);
  const int64_t most = std::max<int64_t>(1, kSums / (kPoints * size));
  const int64_t groups = std::clamp<int64_t>(Ceil(squares.count(), 2 * at_once), 1, std::min(kGroups, most));
  const int64_t parts = std::min(blocks, Ceil(kGroups, groups));
  const int64_t of_block = kPoints * padded * kColumns;
  Buffer sums = Allocate(groups * blocks * of_block);  // (groups, blocks, points, padded channels, kColumns)
  Buffer zeros = Allocate(s.channels);
  std::fill(zeros.get(), zeros.get() + s.channels, 0.0f);
  pool.Run(groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, part = task % parts;
    const int64_t first_block = blocks * part / parts, own = blocks * (part + 1) / parts - first_block;
    const int64_t first = first_block * kColumns, columns = std::min(own * kColumns, s.outputs - first);
    float* const total = sums.get() + (group * blocks + first_block) * of_block;
    std::fill(total, total + own * of_block, 0.0f);
    const int64_t begin = squares.count() * group / groups, end = squares.count() * (group + 1) / groups;
    // As PackNumbers and PackVectors have it, for each point; zeros behind the last channel and output.
    const int64_t of_numbers = padded / kLanes * Apart(at_once, kLanes), of_vectors = own * Apart(at_once, kColumns);
    Buffer numbers = Allocate(kPoints * of_numbers), vectors = Allocate(kPoints * of_vectors);
    if (padded > s.channels) std::fill(numbers.get(), numbers.get() + kPoints * of_numbers, 0.0f);
    if (own * kColumns > columns) std::fill(vectors.get(), vectors.get() + kPoints * of_vectors, 0.0f);
    for (int64_t start = begin; start < end; start += at_once) {
      const int64_t count = std::min(at_once, end - start);
      for (int64_t n = 0; n < count; ++n) {
        TransformInput(squares, x, start + n, zeros.get(), numbers.get() + n * kLanes, of_numbers,
                       Apart(count, kLanes));
        const float* pixel[2][2];
        PixelsOf(squares, start + n, g + first, s.out_height, s.out_width, s.outputs, pixel);
        TransformGradient(pixel, columns, vectors.get() + n * kColumns, of_vectors, Apart(count, kColumns));
      }
      for (int point = 0; point < kPoints; ++point) {
        for (int64_t block = 0; block < own; ++block) {
          SumProducts(numbers.get() + point * of_numbers,
                      vectors.get() + point * of_vectors + block * Apart(count, kColumns), count, s.channels,
                      total + block * of_block + point * padded * kColumns);
        }
      }
    }
  });
  pool.Run(blocks * s.channels, [&](int64_t task) {
    const int64_t block = task / s.channels, channel = task % s.channels, first = block * kColumns;
    const int64_t have = std::min<int64_t>(kColumns, s.outputs - first);
    float k[9][kColumns];
    for (int n = 0; n < kColumns; n += kLanes) {
      Vec point[kPoints];
      for (int i = 0; i < kPoints; ++i) {
        const float* from = sums.get() + block * of_block + (i * padded + channel) * kColumns + n;
        point[i] = Load(from);
        for (int64_t group = 1; group < groups; ++group) point[i] += Load(from + group * blocks * of_block);
      }
      Vec t[3][4];
      for (int j = 0; j < 4; ++j) {
        const Vec half = 0.5f * (point[4 + j] + point[8 + j]);
        t[0][j] = point[j] + half;
        t[1][j] = 0.5f * (point[4 + j] - point[8 + j]);
        t[2][j] = half + point[12 + j];
      }
      for (int i = 0; i < 3; ++i) {
        const Vec half = 0.5f * (t[i][1] + t[i][2]);
        Store(k[3 * i + 0] + n, t[i][0] + half);
        Store(k[3 * i + 1] + n, 0.5f * (t[i][1] - t[i][2]));
        Store(k[3 * i + 2] + n, half + t[i][3]);
      }
    }
    for (int position = 0; position < 9; ++position) {
      std::copy_n(k[position], have, kernel + position * size + channel * s.outputs + first);
    }
  });
}

}  // namespace flagship::FLAGSHIP_TARGET
