// The gradient of a convolution to its kernel: for each of the kernel's positions, the sum over pixels of what it read
// times the output's gradient there, as outer products of rows that are packed first.

#include <algorithm>
#include <limits>
#include <vector>

#include "conv.h"
#include "place.h"
#include "product.h"
#include "window.h"
#include "winograd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kGroups = 16;       // of pixels at most
constexpr int64_t kTasks = 4;         // for each thread
constexpr int64_t kSums = 4 << 20;    // numbers in the groups' sums at most
constexpr int64_t kPackedBlocks = 2;  // of columns, from which on it pays to pack what the kernel's positions read
constexpr int64_t kPixels = 128;      // whose packed rows stay in the cache

// Where each of the kernel's positions reads for some pixels, (positions, kPixels); null outside the image.
void Reads(const ConvShape& s, const float* x, int64_t start, int64_t count, const float** reads) {
  Place place(s.batch, s.out_height, s.out_width, false, start);
  for (int64_t n = 0; n < count; ++n, place.Next()) {
    const float* image = x + place.image * s.height * s.width * s.channels;
    const int64_t top = place.row * s.stride_y - s.low_y, left = place.column * s.stride_x - s.low_x;
    for (int64_t p = 0; p < s.kernel_height; ++p) {
      for (int64_t q = 0; q < s.kernel_width; ++q) {
        const bool inside = top + p >= 0 && top + p < s.height && left + q >= 0 && left + q < s.width;
        reads[(p * s.kernel_width + q) * kPixels + n] =
            inside ? image + ((top + p) * s.width + left + q) * s.channels : nullptr;
      }
    }
  }
}

}  // namespace

void ConvWeightGradient(const ConvShape& s, const float* x, const float* g, float* kernel, const Pool& pool) {
  if (WinogradPays(s, true)) return WinogradWeightGradient(s, x, g, kernel, pool);
  const int64_t positions = s.kernel_height * s.kernel_width, pixels = s.batch * s.out_height * s.out_width;
  // The wider side is read as vectors, and the other's numbers one by one.
  const bool turned = s.outputs < s.channels && s.outputs < kColumns;
  const bool copied = s.channels < kLanes && positions > 1 && !turned;
  const int64_t places = copied ? 1 : positions, read = copied ? positions * s.channels : s.channels;
  const int64_t single = turned ? s.outputs : read, wide = turned ? read : s.outputs;
  const int64_t size = positions * s.channels * s.outputs;
  // The pixels are divided into groups whose sums are added at the end, and the rest by columns and by numbers, so
  // that the least is packed.
  const int64_t blocks = Ceil(wide, kColumns), lanes = Ceil(single, kLanes), most = std::max<int64_t>(1, kSums / size);
  const int64_t groups = std::clamp<int64_t>(pixels / (4 * kPixels), 1, std::min(kGroups, most));
  const int64_t wanted = Ceil(kTasks * pool.threads(), groups);
  int64_t across = 1, down = 1, cost = std::numeric_limits<int64_t>::max();
  for (int64_t d = 1; d <= (turned || copied ? 1 : std::min(wanted, lanes)); ++d) {
    const int64_t a = std::min(blocks, Ceil(wanted, d)), packed = d * wide + a * single;
    if (packed < cost) across = a, down = d, cost = packed;
  }
  const int64_t parts = across * down;
  Buffer sums = groups > 1 ? Allocate(groups * size) : nullptr;

  pool.Run(groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, part_across = task % parts / down, part_down = task % down;
    const int64_t first_block = blocks * part_across / across;
    const int64_t own = blocks * (part_across + 1) / across - first_block;
    const int64_t first = first_block * kColumns, columns = std::min(own * kColumns, wide - first);
    const int64_t first_number = lanes * part_down / down * kLanes;
    const int64_t numbers_here = std::min(lanes * (part_down + 1) / down * kLanes, single) - first_number;
    const int64_t padded = Ceil(numbers_here, kLanes) * kLanes;
    const bool pack_reads = own >= kPackedBlocks || numbers_here % kNumbers != 0;
    float* const result = groups > 1 ? sums.get() + group * size : kernel;
    // What is turned is summed as (places, blocks, outputs, kColumns) first.
    const int64_t of_block = padded * kColumns;
    Buffer total = turned ? Allocate(places * own * of_block) : nullptr;
    const auto sums_of = [&](int64_t place, int64_t block, bool started) -> Sums {
      if (turned) return {total.get() + (place * own + block) * of_block, kColumns, numbers_here, kColumns, started};
      const int64_t column = first + block * kColumns;
      return {result + (place * single + first_number) * wide + column, wide, numbers_here,
              std::min<int64_t>(kColumns, wide - column), started};
    };
    const int64_t of_numbers = padded / kLanes * Apart(kPixels, kLanes);
    Buffer numbers = Allocate(of_numbers), vectors = Allocate(own * Apart(kPixels, kColumns));
    if (padded > numbers_here) std::fill(numbers.get(), numbers.get() + of_numbers, 0.0f);
    Buffer windows = copied ? Allocate(kPixels * read) : nullptr;
    std::vector<const float*> reads(positions * kPixels), slopes(kPixels), some_reads(kPixels), some_slopes(kPixels);
    std::vector<bool> started(places, false);
    const int64_t begin = pixels * group / groups, end = pixels * (group + 1) / groups;
    for (int64_t start = begin; start < end; start += kPixels) {
      const int64_t count = std::min(kPixels, end - start);
      for (int64_t n = 0; n < count; ++n) slopes[n] = g + (start + n) * s.outputs;
      if (copied) {
        Place place(s.batch, s.out_height, s.out_width, false, start);
        for (int64_t n = 0; n < count; ++n, place.Next()) {
          reads[n] = windows.get() + n * read;
          CopyWindow(s, x, place, windows.get() + n * read);
        }
      } else {
        Reads(s, x, start, count, reads.data());
      }
      int64_t packed = 0;  // the gradients' rows that are packed already: all, or none
      for (int64_t place = 0; place < places; ++place) {
        int64_t used = 0;  // pixels whose window has this position inside the image
        for (int64_t n = 0; n < count; ++n) {
          if (reads[place * kPixels + n] == nullptr) continue;
          some_reads[used] = reads[place * kPixels + n] + (turned ? first : first_number);
          some_slopes[used++] = slopes[n] + (turned ? first_number : first);
        }
        if (used == 0) continue;
        if (turned) {
          PackVectors(some_reads.data(), used, columns, vectors.get());
          if (packed != count || used != count) PackNumbers(some_slopes.data(), used, numbers_here, numbers.get());
        } else {
          if (pack_reads) PackNumbers(some_reads.data(), used, numbers_here, numbers.get());
          if (packed != count || used != count) PackVectors(some_slopes.data(), used, columns, vectors.get());
        }
        packed = used;
        for (int64_t block = 0; block < own; ++block) {
          const float* columns_of_block = vectors.get() + block * Apart(used, kColumns);
          const Sums to = sums_of(place, block, started[place]);
          if (turned || pack_reads) {
            SumProducts(numbers.get(), columns_of_block, used, to);
          } else {
            SumProducts(some_reads.data(), columns_of_block, used, to);
          }
        }
        started[place] = true;
      }
    }
    for (int64_t place = 0; place < places; ++place) {
      for (int64_t block = 0; block < own; ++block) {
        const Sums from = sums_of(place, block, true);
        if (!started[place]) {  // all of it lies outside the image
          for (int64_t row = 0; row < from.rows; ++row) std::fill_n(from.to + row * from.apart, from.columns, 0.0f);
        }
        if (!turned) continue;
        const int64_t column = first + block * kColumns, have = std::min<int64_t>(kColumns, wide - column);
        for (int64_t row = 0; row < single; ++row) {
          for (int64_t n = 0; n < have; ++n) {
            result[(place * read + column + n) * s.outputs + row] = from.to[row * kColumns + n];
          }
        }
      }
    }
  });
  if (groups > 1) AddGroups(sums.get(), groups, size, kernel, pool);
}

}  // namespace flagship::FLAGSHIP_TARGET
