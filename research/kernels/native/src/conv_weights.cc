// The gradient of a convolution to its kernel: for each of the kernel's positions, the sum over pixels of what it read
// times the output's gradient there, as outer products of rows that are packed first.

#include <algorithm>
#include <vector>

#include "conv.h"
#include "place.h"
#include "product.h"
#include "window.h"
#include "winograd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kGroups = 16;       // of pixels, or of columns, that the work is divided into
constexpr int64_t kSums = 4 << 20;    // numbers in the groups' sums at most
constexpr int64_t kPackedBlocks = 4;  // of columns, from which on it pays to pack what the kernel's positions read
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
  const int64_t padded = Ceil(single, kLanes) * kLanes;
  const int64_t size = positions * s.channels * s.outputs;
  // The pixels are divided into groups whose sums are added at the end, and what is left of the tasks by columns.
  const int64_t blocks = Ceil(wide, kColumns), most = std::max<int64_t>(1, kSums / size);
  const int64_t groups = std::clamp<int64_t>(pixels / (4 * kPixels), 1, std::min(kGroups, most));
  const int64_t parts = std::min(blocks, Ceil(kGroups, groups));
  Buffer sums = groups > 1 ? Allocate(groups * size) : nullptr;

  pool.Run(groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, part = task % parts;
    const int64_t first_block = blocks * part / parts, own = blocks * (part + 1) / parts - first_block;
    const int64_t first = first_block * kColumns, columns = std::min(own * kColumns, wide - first);
    const int64_t of_block = padded * kColumns;
    const bool pack_reads = own >= kPackedBlocks || single % kNumbers != 0;
    Buffer total = Allocate(places * own * of_block);
    std::fill(total.get(), total.get() + places * own * of_block, 0.0f);
    const int64_t of_numbers = padded / kLanes * Apart(kPixels, kLanes);
    Buffer numbers = Allocate(of_numbers), vectors = Allocate(own * Apart(kPixels, kColumns));
    if (padded > single) std::fill(numbers.get(), numbers.get() + of_numbers, 0.0f);
    Buffer windows = copied ? Allocate(kPixels * read) : nullptr;
    std::vector<const float*> reads(positions * kPixels), slopes(kPixels), some_reads(kPixels), some_slopes(kPixels);
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
          some_reads[used] = reads[place * kPixels + n] + (turned ? first : 0);
          some_slopes[used++] = slopes[n] + (turned ? 0 : first);
        }
        if (used == 0) continue;
        if (turned) {
          PackVectors(some_reads.data(), used, columns, vectors.get());
          if (packed != count || used != count) PackNumbers(some_slopes.data(), used, single, numbers.get());
        } else {
          if (pack_reads) PackNumbers(some_reads.data(), used, single, numbers.get());
          if (packed != count || used != count) PackVectors(some_slopes.data(), used, columns, vectors.get());
        }
        packed = used;
        for (int64_t block = 0; block < own; ++block) {
          const float* columns_of_block = vectors.get() + block * Apart(used, kColumns);
          float* to = total.get() + (place * own + block) * of_block;
          if (turned || pack_reads) {
            SumProducts(numbers.get(), columns_of_block, used, single, to);
          } else {
            SumProducts(some_reads.data(), columns_of_block, used, single, to);
          }
        }
      }
    }
    float* result = groups > 1 ? sums.get() + group * size : kernel;
    for (int64_t place = 0; place < places; ++place) {
      for (int64_t block = 0; block < own; ++block) {
        const float* from = total.get() + (place * own + block) * of_block;
        const int64_t column = first + block * kColumns, have = std::min<int64_t>(kColumns, wide - column);
        for (int64_t row = 0; row < single; ++row, from += kColumns) {
          if (turned) {
            for (int64_t n = 0; n < have; ++n) result[(place * read + column + n) * s.outputs + row] = from[n];
          } else {
            std::copy_n(from, have, result + (place * single + row) * wide + column);
          }
        }
      }
    }
  });
  if (groups > 1) AddGroups(sums.get(), groups, size, kernel, pool);
}

}  // namespace flagship::FLAGSHIP_TARGET
