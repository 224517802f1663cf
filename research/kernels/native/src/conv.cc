// Convolutions as products of gathered rows: what a kernel position multiplies are rows of C numbers that lie in the
// image as they are, so nothing is copied; a position outside the image is a row of zeros.
//
// Every result is summed in an order that neither the number of threads nor their timing changes.

#include "conv.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "place.h"
#include "product.h"
#include "window.h"
#include "winograd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kTiles = 32;      // of rows, that one piece of columns is multiplied with before the next
constexpr int64_t kLeastTiles = 4;  // of rows, of a task
constexpr int64_t kTasks = 4;       // for each thread
constexpr int64_t kFewOutputs = 4;  // that are summed along vectors of the depth
constexpr int64_t kSmallImage = 8;  // pixels a side: a noticeable share of what its pixels read lies outside
constexpr int64_t kNarrow = 16;     // channels below which a pixel's window is copied into one row

// For outputs that do not fill a vector: Σ over positions and numbers along the vectors, and then within one.
// `kernel` is (outputs, positions, depth).
void Dots(const float* const* rows, float* const* out, int64_t tiles, int64_t positions, int64_t depth, int64_t outputs,
          const float* kernel) {
  const int64_t whole = depth / kLanes * kLanes;
  for (int64_t tile = 0; tile < tiles; ++tile, rows += positions * kRows, out += kRows) {
    for (int64_t o = 0; o < outputs; ++o) {
      Vec acc[kRows] = {};
      for (int64_t position = 0; position < positions; ++position) {
        const float* const* a = rows + position * kRows;
        const float* b = kernel + (o * positions + position) * depth;
        for (int64_t c = 0; c < whole; c += kLanes) {
          const Vec column = Load(b + c);
#pragma GCC unroll 16
          for (int m = 0; m < kRows; ++m) acc[m] += Load(a[m] + c) * column;
        }
        if (whole < depth) {
          const Vec column = LoadSome(b + whole, depth - whole);
          for (int m = 0; m < kRows; ++m) acc[m] += LoadSome(a[m] + whole, depth - whole) * column;
        }
      }
      for (int m = 0; m < kRows; ++m) {
        float total = 0.0f;
        for (int lane = 0; lane < kLanes; ++lane) total += acc[m][lane];
        out[m][o] = total;
      }
    }
  }
}

// (positions of the kernel, …) → (outputs, positions, depth), for `Dots`.
Buffer PackDots(const float* kernel, const std::vector<int64_t>& positions, int64_t depth, int64_t outputs,
                bool turned) {
  const int64_t count = positions.size();
  Buffer packed = Allocate(outputs * count * depth);
  for (int64_t position = 0; position < count; ++position) {
    const float* from = kernel + positions[position] * depth * outputs;
    for (int64_t o = 0; o < outputs; ++o) {
      float* to = packed.get() + (o * count + position) * depth;
      for (int64_t c = 0; c < depth; ++c) to[c] = turned ? from[o * depth + c] : from[c * outputs + o];
    }
  }
  return packed;
}

// A result whose pixels each multiply rows of `depth` numbers, one for each of the kernel's `positions`. Pixels are
// those of (images, rows, columns); gather(place, row): row[position · kRows] ← where the position's numbers begin,
// which are zeros where it says nothing; it returns where the result goes.
template <typename Gather>
void GatherMultiply(const float* kernel, const std::vector<int64_t>& positions, int64_t depth, int64_t outputs,
                    bool turned, int64_t images, int64_t rows, int64_t columns, const Gather& gather,
                    const Pool& pool) {
  const int64_t count = positions.size(), pixels = images * rows * columns, tiles = Ceil(pixels, kRows);
  const bool dots = outputs <= kFewOutputs && depth >= kLanes;
  const Packing packing{kernel, positions, depth, outputs, turned};
  Buffer packed = dots ? PackDots(kernel, positions, depth, outputs, turned) : Allocate(packing.size());
  const Product product{count, depth, outputs, packed.get()};
  const int64_t blocks = dots ? 1 : product.blocks();
  // Positions outside the image are passed over where a tile's pixels have the same ones outside.
  const bool images_first = !dots && images >= kRows && std::min(rows, columns) <= kSmallImage;
  // As many tasks for every thread, of rows that stay in the cache; few rows are divided by the kernel's columns too.
  const int64_t share = kTasks * pool.threads();
  const int64_t groups = std::clamp<int64_t>(tiles / kLeastTiles, 1, Ceil(Ceil(tiles, kTiles), share) * share);
  const int64_t parts = std::min(blocks, Ceil(share, groups));
  // Packing comes first, and in the same tasks: threads that have to be woken twice would cost a small product more
  // than it takes.
  const int64_t packs = dots ? 0 : packing.pieces();
  std::atomic<int64_t> packed_pieces = 0;
  Buffer zeros = Allocate(depth);
  std::fill(zeros.get(), zeros.get() + depth, 0.0f);
  pool.Work(packs + groups * parts, [&](const Pool::Next& next) {
    std::vector<const float*> read;
    std::vector<float*> out;
    Buffer spare = Allocate(outputs);  // where the rows of a last tile go that are no pixels
    for (int64_t task; (task = next()) >= 0;) {
      if (task < packs) {
        packing.Run(task, packed.get());
        packed_pieces.fetch_add(1, std::memory_order_release);
        continue;
      }
      // Every piece has been begun, by a thread that ends it.
      while (packed_pieces.load(std::memory_order_acquire) < packs) _mm_pause();
      const int64_t group = (task - packs) / parts, part = (task - packs) % parts;
      const int64_t first = tiles * group / groups, last = tiles * (group + 1) / groups;
      read.assign((last - first) * count * kRows, zeros.get());
      out.resize((last - first) * kRows);
      Place place(images, rows, columns, images_first, first * kRows);
      for (int64_t n = 0; n < (last - first) * kRows; ++n, place.Next()) {
        const int64_t row = n / kRows * count * kRows + n % kRows;
        out[n] = first * kRows + n < pixels ? gather(place, read.data() + row) : spare.get();
      }
      for (int64_t n = 0; images_first && n < (last - first) * count; ++n) {
        const float** const rows_of_tile = read.data() + n * kRows;
        if (std::all_of(rows_of_tile, rows_of_tile + kRows, [&](const float* row) { return row == zeros.get(); })) {
          rows_of_tile[0] = nullptr;
        }
      }
      if (dots) {
        Dots(read.data(), out.data(), last - first, count, depth, outputs, packed.get());
        continue;
      }
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        for (int64_t tile = 0; tile < last - first; tile += kTiles) {
          product.Run(read.data() + tile * count * kRows, out.data() + tile * kRows,
                      std::min(kTiles, last - first - tile), block);
        }
      }
    }
  });
}

// With few channels what a pixel reads is copied into one row: its window.
void ForwardOfWindows(const ConvShape& s, const float* x, const float* kernel, float* y, const Pool& pool) {
  const int64_t width = s.kernel_height * s.kernel_width * s.channels, pixels = s.batch * s.out_height * s.out_width;
  const std::vector<int64_t> positions = {0};
  Buffer packed = Pack({kernel, positions, width, s.outputs, false}, pool);
  const Product product{1, width, s.outputs, packed.get()};
  constexpr int64_t kAtOnce = kTiles * kRows;
  pool.Work(Ceil(pixels, kAtOnce), [&](const Pool::Next& next) {
    Buffer windows = Allocate(kAtOnce * width), spare = Allocate(s.outputs);
    std::fill(windows.get(), windows.get() + kAtOnce * width, 0.0f);
    std::vector<const float*> read(kAtOnce);
    std::vector<float*> out(kAtOnce);
    for (int64_t n = 0; n < kAtOnce; ++n) read[n] = windows.get() + n * width;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t first = task * kAtOnce, count = std::min(kAtOnce, pixels - first), tiles = Ceil(count, kRows);
      Place place(s.batch, s.out_height, s.out_width, false, first);
      for (int64_t n = 0; n < count; ++n, place.Next()) CopyWindow(s, x, place, windows.get() + n * width);
      for (int64_t n = 0; n < kAtOnce; ++n) out[n] = n < count ? y + (first + n) * s.outputs : spare.get();
      for (int64_t block = 0; block < product.blocks(); ++block) product.Run(read.data(), out.data(), tiles, block);
    }
  });
}

}  // namespace

void ConvForward(const ConvShape& s, const float* x, const float* kernel, float* y, const Pool& pool) {
  if (WinogradPays(s, false)) return WinogradForward(s, x, kernel, false, y, pool);
  if (s.channels < kNarrow && s.kernel_height * s.kernel_width > 1) return ForwardOfWindows(s, x, kernel, y, pool);
  std::vector<int64_t> positions(s.kernel_height * s.kernel_width);
  std::iota(positions.begin(), positions.end(), 0);
  GatherMultiply(
      kernel, positions, s.channels, s.outputs, false, s.batch, s.out_height, s.out_width,
      [&](const Place& place, const float** read) {
        const float* image = x + place.image * s.height * s.width * s.channels;
        const int64_t top = place.row * s.stride_y - s.low_y, left = place.column * s.stride_x - s.low_x;
        for (int64_t p = std::max<int64_t>(0, -top); p < std::min(s.kernel_height, s.height - top); ++p) {
          for (int64_t q = std::max<int64_t>(0, -left); q < std::min(s.kernel_width, s.width - left); ++q) {
            read[(p * s.kernel_width + q) * kRows] = image + ((top + p) * s.width + left + q) * s.channels;
          }
        }
        return y + ((place.image * s.out_height + place.row) * s.out_width + place.column) * s.outputs;
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
      std::vector<int64_t> positions, down, right;  // of the kernel, and how far from its pixel each one's output is
      for (int64_t p = phase_y; p < s.kernel_height; p += s.stride_y) {
        for (int64_t q = phase_x; q < s.kernel_width; q += s.stride_x) {
          positions.push_back(p * s.kernel_width + q);
          down.push_back((first_row + s.low_y - p) / s.stride_y);
          right.push_back((first_column + s.low_x - q) / s.stride_x);
        }
      }
      const int64_t count = positions.size();
      const auto pixel = [&](const Place& place) {
        const int64_t row = first_row + place.row * s.stride_y, column = first_column + place.column * s.stride_x;
        return x + ((place.image * s.height + row) * s.width + column) * s.channels;
      };
      if (count == 0) {
        Place place(s.batch, rows, columns, false, 0);
        for (; place.image < s.batch; place.Next()) std::fill_n(pixel(place), s.channels, 0.0f);
        continue;
      }
      GatherMultiply(
          kernel, positions, s.outputs, s.channels, true, s.batch, rows, columns,
          [&](const Place& place, const float** read) {
            const float* from = g + place.image * s.out_height * s.out_width * s.outputs;
            for (int64_t position = 0; position < count; ++position) {
              const int64_t i = place.row + down[position], j = place.column + right[position];
              if (i < 0 || j < 0 || i >= s.out_height || j >= s.out_width) continue;
              read[position * kRows] = from + (i * s.out_width + j) * s.outputs;
            }
            return pixel(place);
          },
          pool);
    }
  }
}

}  // namespace flagship::FLAGSHIP_TARGET
