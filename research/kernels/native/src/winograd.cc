// The two schedules of Winograd's convolution, and its weight gradient; the formulas are in winograd_transforms.h.

#include "winograd.h"

#include <algorithm>
#include <vector>

#include "product.h"
#include "winograd_transforms.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kBytesAtOnce = 512 << 10;  // of transformed squares and products that a task holds
constexpr int64_t kFewSquares = 256;
constexpr int64_t kLeastAtOnce = 64;  // squares, for a large kernel is read once for each such number
constexpr int64_t kGroups = 16;
constexpr int64_t kSums = 4 << 20;  // numbers in the groups' sums at most

// Squares of a result, from what they read and a kernel that may be turned about.
struct Forward {
  Squares squares;
  const float *from, *kernel;
  float* to;
  int64_t height, width, outputs;  // of the result
  int64_t kernel_channels, kernel_outputs;
  bool turned;

  int64_t depth() const { return squares.channels; }
  int64_t blocks() const { return Ceil(outputs, kColumns); }
  int64_t pieces() const { return Ceil(depth(), kPiece); }

  // A piece of a block's rows, for all points: to + point · step.
  void Transform(int64_t block, int64_t piece, float* columns, int64_t step) const {
    TransformKernel(kernel, kernel_channels, kernel_outputs, turned, block, piece * kPiece, columns, step);
  }

  // For one point: the products of `count` transformed squares with some blocks of columns; out has rows of `row`.
  void Multiply(const float* read, int64_t count, const float* columns, int64_t row, float* out) const {
    const int64_t padded = Ceil(count, kRows) * kRows;
    std::vector<const float*> rows(padded);
    std::vector<float*> places(padded);
    for (int64_t n = 0; n < padded; ++n) {
      rows[n] = read + std::min(n, count - 1) * depth();  // what fills the last tile is thrown away
      places[n] = out + n * row;
    }
    const Product product{1, depth(), row, columns};
    for (int64_t block = 0; block < product.blocks(); ++block) {
      product.Run(rows.data(), places.data(), padded / kRows, block);
    }
  }

  void Write(int64_t square, int64_t first, int64_t columns, const float* products, int64_t step) const {
    float* pixel[2][2];
    PixelsOf(squares, square, to + first, height, width, outputs, pixel);
    TransformOutput(products, step, columns, pixel);
  }

  // Some squares at a time, with a kernel that is transformed before.
  void RunBySquares(const float* zeros, const Pool& pool) const {
    const int64_t of_columns = blocks() * depth() * kColumns;
    Buffer columns = Allocate(kPoints * of_columns);
    pool.Run(blocks() * pieces(), [&](int64_t task) {
      const int64_t block = task / pieces();
      Transform(block, task % pieces(), columns.get() + block * depth() * kColumns, of_columns);
    });
    const int64_t fitting = kBytesAtOnce / (kPoints * (depth() + outputs) * static_cast<int64_t>(sizeof(float)));
    const int64_t at_once = Ceil(std::max(fitting, kLeastAtOnce), kRows) * kRows;
    const int64_t of_read = Apart(at_once, depth()), of_products = Apart(at_once, outputs);
    pool.Work(Ceil(squares.count(), at_once), [&](const Pool::Next& next) {
      Buffer read = Allocate(kPoints * of_read), products = Allocate(kPoints * of_products);
      for (int64_t task; (task = next()) >= 0;) {
        const int64_t first = task * at_once, count = std::min(at_once, squares.count() - first);
        for (int64_t n = 0; n < count; ++n) {
          TransformInput(squares, from, first + n, zeros, read.get() + n * depth(), of_read);
        }
        for (int point = 0; point < kPoints; ++point) {
          Multiply(read.get() + point * of_read, count, columns.get() + point * of_columns, outputs,
                   products.get() + point * of_products);
        }
        for (int64_t n = 0; n < count; ++n) Write(first + n, 0, outputs, products.get() + n * outputs, of_products);
      }
    });
  }

  // All squares at once, a block of columns at a time: each is transformed by the task that needs it, and never leaves
  // that task's cache.
  void RunByColumns(const float* zeros, const Pool& pool) const {
    const int64_t padded = Ceil(squares.count(), kRows) * kRows;
    const int64_t of_read = Apart(padded, depth()), of_products = Apart(padded, kColumns);
    const int64_t of_columns = Apart(depth(), kColumns);
    Buffer read = Allocate(kPoints * of_read);
    pool.Run(Ceil(squares.count(), kRows), [&](int64_t tile) {
      for (int64_t n = tile * kRows; n < std::min((tile + 1) * kRows, squares.count()); ++n) {
        TransformInput(squares, from, n, zeros, read.get() + n * depth(), of_read);
      }
    });
    pool.Work(blocks(), [&](const Pool::Next& next) {
      Buffer columns = Allocate(kPoints * of_columns), products = Allocate(kPoints * of_products);
      for (int64_t block; (block = next()) >= 0;) {
        for (int64_t piece = 0; piece < pieces(); ++piece) Transform(block, piece, columns.get(), of_columns);
        for (int point = 0; point < kPoints; ++point) {
          Multiply(read.get() + point * of_read, squares.count(), columns.get() + point * of_columns, kColumns,
                   products.get() + point * of_products);
        }
        const int64_t first = block * kColumns, have = std::min<int64_t>(kColumns, outputs - first);
        for (int64_t n = 0; n < squares.count(); ++n) {
          Write(n, first, have, products.get() + n * kColumns, of_products);
        }
      }
    });
  }
};

}  // namespace

bool WinogradPays(const ConvShape& s, bool weight_gradient) {
  const int64_t squares = s.batch * Ceil(s.out_height, 2) * Ceil(s.out_width, 2);
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_y == 1 && s.stride_x == 1 && s.channels >= 16 &&
         s.outputs >= 16 && squares >= (weight_gradient ? kFewSquares : kFewSquares / 4);
}

void WinogradForward(const ConvShape& s, const float* from, const float* kernel, bool turned, float* to,
                     const Pool& pool) {
  const int64_t height = turned ? s.height : s.out_height, width = turned ? s.width : s.out_width;
  const int64_t depth = turned ? s.outputs : s.channels;
  const Squares squares{s.batch,
                        Ceil(height, 2),
                        Ceil(width, 2),
                        turned ? s.out_height : s.height,
                        turned ? s.out_width : s.width,
                        depth,
                        turned ? 2 - s.low_y : s.low_y,
                        turned ? 2 - s.low_x : s.low_x};
  const Forward forward{squares,    from,      kernel, to, height, width, turned ? s.channels : s.outputs,
                        s.channels, s.outputs, turned};
  Buffer zeros = Allocate(depth);
  std::fill(zeros.get(), zeros.get() + depth, 0.0f);
  if (squares.count() <= kFewSquares) {
    forward.RunByColumns(zeros.get(), pool);
  } else {
    forward.RunBySquares(zeros.get(), pool);
  }
}

void WinogradWeightGradient(const ConvShape& s, const float* x, const float* g, float* kernel, const Pool& pool) {
  const Squares squares{s.batch, Ceil(s.out_height, 2), Ceil(s.out_width, 2), s.height, s.width, s.channels, s.low_y,
                        s.low_x};
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
          SumProducts(
              numbers.get() + point * of_numbers, vectors.get() + point * of_vectors + block * Apart(count, kColumns),
              count,
              {total + block * of_block + point * padded * kColumns, kColumns, s.channels, kColumns, start > begin});
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
