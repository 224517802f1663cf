// Work for several threads, and memory for one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>

namespace flagship {

// Threads that share numbered tasks. Which thread has which, and in what order, must not matter to the result.
class Pool {
 public:
  using Next = std::function<int64_t()>;  // the number of a task that nobody has begun, or −1 when there is none
  using Worker = std::function<void(const Next&)>;

  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;

  // Calls worker once on each thread, or on as many as there are tasks, and returns when all have ended: what a worker
  // allocates before its first task serves all of its tasks. (One arena of malloc's is shared by all threads.)
  virtual void Work(int64_t count, const Worker& worker) const = 0;

  // task(0) … task(count − 1), each once.
  template <typename Task>
  void Run(int64_t count, const Task& task) const {
    Work(count, [&task](const Next& next) {
      for (int64_t number; (number = next()) >= 0;) task(number);
    });
  }
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
