// Convolutions as products of gathered rows: what a kernel position multiplies are rows of C numbers that lie in the
// image as they are, so nothing is copied; a position outside the image is a row of zeros.
//
// Every result is summed in an order that neither the number of threads nor their timing changes.

#include "conv.h"

#include <algorithm>
#include <vector>

#include "product.h"
#include "winograd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kTiles = 32;      // of rows, that one piece of columns is multiplied with before the next
constexpr int64_t kNarrow = 16;     // channels below which a pixel's window is copied into one row
constexpr int64_t kGroups = 16;     // of pixels, or of columns, that a weight gradient is divided into
constexpr int64_t kSums = 4 << 20;  // numbers in the groups' sums at most
constexpr int64_t kPixels = 128;    // whose products are summed before the next tile of a weight gradient

// What the pixels of a result read: `positions` rows of `depth` numbers each.
// Gather(pixel, rows): rows[position · kRows] ← where the row begins, or null for zeros; returns where the result goes.
template <typename Gather>
void GatherMultiply(const Product& product, int64_t pixels, const Gather& gather, const Pool& pool) {
  const int64_t blocks = product.blocks(), positions = product.positions, depth = product.depth;
  const int64_t tiles = Ceil(pixels, kRows);
  // Enough tasks for every thread; a wide kernel is divided by its columns first, so that it is read once.
  const int64_t groups = std::clamp<int64_t>(tiles / 4, 1, Ceil(tiles, kTiles));
  const int64_t parts = groups >= 8 ? 1 : std::min(blocks, Ceil(8, groups));
  Buffer zeros = Allocate(depth);
  std::fill(zeros.get(), zeros.get() + depth, 0.0f);
  const bool copied = depth < kNarrow && positions > 1;
  const Product whole{copied ? 1 : positions, copied ? positions * depth : depth, product.outputs, product.packed};
  pool.Run(groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, part = task % parts;
    const int64_t first = tiles * group / groups, last = tiles * (group + 1) / groups, count = last - first;
    std::vector<const float*> rows(count * positions * kRows, zeros.get());
    std::vector<float*> out(count * kRows);
    Buffer spare = Allocate(product.outputs);  // where the rows of a last tile go that are no pixels
    for (int64_t tile = 0; tile < count; ++tile) {
      for (int m = 0; m < kRows; ++m) {
        const int64_t pixel = (first + tile) * kRows + m;
        out[tile * kRows + m] =
            pixel < pixels ? gather(pixel, rows.data() + tile * positions * kRows + m) : spare.get();
      }
    }
    Buffer windows;
    std::vector<const float*> copies;
    if (copied) {
      const int64_t width = positions * depth;
      windows = Allocate(count * kRows * width);
      copies.resize(count * kRows);
      for (int64_t tile = 0; tile < count; ++tile) {
        for (int m = 0; m < kRows; ++m) {
          float* to = windows.get() + (tile * kRows + m) * width;
          copies[tile * kRows + m] = to;
          for (int64_t position = 0; position < positions; ++position, to += depth) {
            const float* from = rows[(tile * positions + position) * kRows + m];
            for (int64_t c = 0; c < depth; ++c) to[c] = from[c];
          }
        }
      }
    }
    const float* const* read = copied ? copies.data() : rows.data();
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      for (int64_t tile = 0; tile < count; tile += kTiles) {
        whole.Run(read + tile * whole.positions * kRows, out.data() + tile * kRows, std::min(kTiles, count - tile), block);
      }
    }
  });
}

}  // namespace

void ConvForward(const ConvShape& s, const float* x, const float* kernel, float* y, const Pool& pool) {
  if (WinogradPays(s, false)) return WinogradForward(s, x, kernel, false, y, pool);
  const int64_t positions = s.kernel_height * s.kernel_width;
  std::vector<int64_t> all(positions);
  for (int64_t position = 0; position < positions; ++position) all[position] = position;
  Buffer packed = Pack(kernel, all, s.channels, s.outputs, false, pool);
  const Product product{positions, s.channels, s.outputs, packed.get()};
  GatherMultiply(
      product, s.batch * s.out_height * s.out_width,
      [&](int64_t pixel, const float** rows) {
        const int64_t column = pixel % s.out_width, row = pixel / s.out_width % s.out_height;
        const float* image = x + pixel / (s.out_width * s.out_height) * s.height * s.width * s.channels;
        const int64_t top = row * s.stride_y - s.low_y, left = column * s.stride_x - s.low_x;
        for (int64_t p = 0; p < s.kernel_height; ++p) {
          if (top + p < 0 || top + p >= s.height) continue;
          for (int64_t q = 0; q < s.kernel_width; ++q) {
            if (left + q < 0 || left + q >= s.width) continue;
            rows[(p * s.kernel_width + q) * kRows] = image + ((top + p) * s.width + left + q) * s.channels;
          }
        }
        return y + pixel * s.outputs;
      },
      pool);
}

void ConvInputGradient(const ConvShape& s, const float* g, const float* kernel, float* x, const Pool& pool) {
  if (WinogradPays(s, false)) return WinogradForward(s, g, kernel, true, x, pool);
  // A pixel at (row + low) mod stride = phase was read by the kernel rows p ≡ phase alone.
  for (int64_t phase_y = 0; phase_y < s.stride_y; ++phase_y) {
    for (int64_t phase_x = 0; phase_x < s.stride_x; ++phase_x) {
      const int64_t first_row = ((phase_y - s.low_y) % s.stride_y + s.stride_y) % s.stride_y;
      const int64_t first_column = ((phase_x - s.low_x) % s.stride_x + s.stride_x) % s.stride_x;
      if (first_row >= s.height || first_column >= s.width) continue;
      const int64_t rows = Ceil(s.height - first_row, s.stride_y), columns = Ceil(s.width - first_column, s.stride_x);
      std::vector<int64_t> positions, down, right;
      for (int64_t p = phase_y; p < s.kernel_height; p += s.stride_y) {
        for (int64_t q = phase_x; q < s.kernel_width; q += s.stride_x) {
          positions.push_back(p * s.kernel_width + q);
          down.push_back(p);
          right.push_back(q);
        }
      }
      const int64_t count = positions.size();
      if (count == 0) {
        for (int64_t pixel = 0; pixel < s.batch * rows * columns; ++pixel) {
          const int64_t row = first_row + pixel / columns % rows * s.stride_y;
          const int64_t column = first_column + pixel % columns * s.stride_x;
          float* to = x + ((pixel / (rows * columns) * s.height + row) * s.width + column) * s.channels;
          std::fill(to, to + s.channels, 0.0f);
        }
        continue;
      }
      Buffer packed = Pack(kernel, positions, s.outputs, s.channels, true, pool);
      const Product product{count, s.outputs, s.channels, packed.get()};
      GatherMultiply(
          product, s.batch * rows * columns,
          [&](int64_t pixel, const float** read) {
            const int64_t row = first_row + pixel / columns % rows * s.stride_y;
            const int64_t column = first_column + pixel % columns * s.stride_x;
            const int64_t image = pixel / (rows * columns);
            const float* from = g + image * s.out_height * s.out_width * s.outputs;
            for (int64_t position = 0; position < count; ++position) {
              const int64_t over = row + s.low_y - down[position], beside = column + s.low_x - right[position];
              if (over < 0 || beside < 0) continue;
              const int64_t i = over / s.stride_y, j = beside / s.stride_x;
              if (i >= s.out_height || j >= s.out_width) continue;
              read[position * kRows] = from + (i * s.out_width + j) * s.outputs;
            }
            return x + ((image * s.height + row) * s.width + column) * s.channels;
          },
          pool);
    }
  }
}

void ConvWeightGradient(const ConvShape& s, const float* x, const float* g, float* kernel, const Pool& pool) {
  if (WinogradPays(s, true)) return WinogradWeightGradient(s, x, g, kernel, pool);
  const int64_t positions = s.kernel_height * s.kernel_width, pixels = s.batch * s.out_height * s.out_width;
  // The wider side is read as vectors, and the other's numbers one by one.
  const bool turned = s.outputs < s.channels && s.outputs < kColumns;
  const bool copied = s.channels < kRows && positions > 1 && !turned;
  const int64_t places = copied ? 1 : positions;
  const int64_t single = turned ? s.outputs : copied ? positions * s.channels : s.channels;
  const int64_t wide = turned ? s.channels : s.outputs;
  const int64_t size = positions * s.channels * s.outputs;
  // The pixels are divided into groups whose sums are added at the end, and what is left of the tasks by columns.
  const int64_t blocks = Ceil(wide, kColumns);
  const int64_t most = std::max<int64_t>(1, kSums / size);
  const int64_t groups = std::clamp<int64_t>(pixels / (4 * kPixels), 1, std::min(kGroups, most));
  const int64_t parts = std::min(blocks, Ceil(kGroups, groups));
  Buffer sums = groups > 1 ? Allocate(groups * size) : nullptr;
  Buffer zeros = Allocate(s.channels);
  std::fill(zeros.get(), zeros.get() + s.channels, 0.0f);

  pool.Run(groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, part = task % parts;
    const int64_t first_block = blocks * part / parts, last_block = blocks * (part + 1) / parts;
    // (places, single, columns of this task), as the tiles have it
    const int64_t own = last_block - first_block;
    Buffer total = Allocate(places * single * own * kColumns);
    std::fill(total.get(), total.get() + places * single * own * kColumns, 0.0f);
    Buffer panel = Allocate(kPixels * kColumns);
    Buffer windows = copied ? Allocate(kPixels * single) : nullptr;
    std::vector<const float*> reads(positions * kPixels), some(kPixels), vectors(kPixels);
    const int64_t begin = pixels * group / groups, end = pixels * (group + 1) / groups;
    for (int64_t start = begin; start < end; start += kPixels) {
      const int64_t count = std::min(kPixels, end - start);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t pixel = start + n, column = pixel % s.out_width, row = pixel / s.out_width % s.out_height;
        const float* image = x + pixel / (s.out_width * s.out_height) * s.height * s.width * s.channels;
        const int64_t top = row * s.stride_y - s.low_y, left = column * s.stride_x - s.low_x;
        for (int64_t p = 0; p < s.kernel_height; ++p) {
          for (int64_t q = 0; q < s.kernel_width; ++q) {
            const bool inside = top + p >= 0 && top + p < s.height && left + q >= 0 && left + q < s.width;
            reads[(p * s.kernel_width + q) * kPixels + n] =
                inside ? image + ((top + p) * s.width + left + q) * s.channels : nullptr;
          }
        }
      }
      if (copied) {
        for (int64_t n = 0; n < count; ++n) {
          float* to = windows.get() + n * single;
          for (int64_t position = 0; position < positions; ++position) {
            const float* from = reads[position * kPixels + n];
            for (int64_t c = 0; c < s.channels; ++c) *to++ = from == nullptr ? 0.0f : from[c];
          }
        }
      }
      for (int64_t block = first_block; block < last_block; ++block) {
        const int64_t column = block * kColumns, columns = std::min<int64_t>(kColumns, wide - column);
        if (!turned) {
          for (int64_t n = 0; n < count; ++n) {
            CopyPadded(g + (start + n) * s.outputs + column, columns, panel.get() + n * kColumns);
          }
        }
        for (int64_t place = 0; place < places; ++place) {
          // The pixels of this position that lie in the image.
          int64_t used = 0;
          for (int64_t n = 0; n < count; ++n) {
            const float* read = copied ? windows.get() + n * single : reads[place * kPixels + n];
            if (read == nullptr) continue;
            if (turned) {
              CopyPadded(read + column, columns, panel.get() + used * kColumns);
              some[used] = g + (start + n) * s.outputs;
              vectors[used] = panel.get() + used * kColumns;
            } else {
              some[used] = read;
              vectors[used] = panel.get() + n * kColumns;
            }
            ++used;
          }
          float* to = total.get() + (place * own + block - first_block) * single * kColumns;
          SumProducts(some.data(), vectors.data(), used, single, to);
        }
      }
    }
    float* result = groups > 1 ? sums.get() + group * size : kernel;
    for (int64_t place = 0; place < places; ++place) {
      for (int64_t block = first_block; block < last_block; ++block) {
        const float* from = total.get() + (place * own + block - first_block) * single * kColumns;
        const int64_t column = block * kColumns, columns = std::min<int64_t>(kColumns, wide - column);
        for (int64_t row = 0; row < single; ++row, from += kColumns) {
          if (turned) {
            for (int64_t n = 0; n < columns; ++n) {
              result[(place * s.channels + column + n) * s.outputs + row] = from[n];
            }
          } else {
            std::copy_n(from, columns, result + (place * single + row) * wide + column);
          }
        }
      }
    }
  });
  if (groups == 1) return;
  const int64_t pieces = Ceil(size, 4096);
  pool.Run(pieces, [&](int64_t piece) {
    const int64_t first = piece * 4096, last = std::min(size, first + 4096);
    std::copy(sums.get() + first, sums.get() + last, kernel + first);
    for (int64_t group = 1; group < groups; ++group) {
      const float* from = sums.get() + group * size;
      for (int64_t n = first; n < last; ++n) kernel[n] += from[n];
    }
  });
}

}  // namespace flagship::FLAGSHIP_TARGET
