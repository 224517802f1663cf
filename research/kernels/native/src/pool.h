// Work for several threads, and memory for one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

namespace flagship {

// Runs task(0) … task(count − 1), each once, on whatever threads there are, and returns when all have ended. Which
// thread runs which, and in what order, must not matter to the result.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual void Run(int64_t count, const std::function<void(int64_t)>& task) const = 0;
  virtual int64_t threads() const = 0;
};

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float[], Free>;

// Aligned to a cache line, not initialised. Throws std::bad_alloc.
inline Buffer Allocate(size_t count) {
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
  if (memory == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(memory));
}

}  // namespace flagship
