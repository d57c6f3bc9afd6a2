#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace terse::examples {

/// A fixed set of threads that share loops. The calling thread works too, so `threads == 1` starts
/// none.
///
/// Which thread runs which index is not fixed; a loop whose iterations write disjoint results from
/// the index alone therefore gives the same result for every thread count.
class ThreadPool {
 public:
  /// \param threads number of threads that work on a loop, the caller included; below 1 counts as 1
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls `body(i)` once for every i in [0, count) and returns when all calls have returned.
  /// The first exception thrown by a call is rethrown here; indices not started by then are
  /// skipped. Must not be called from inside a body of the same pool, nor by two threads at once;
  /// a pool of one thread has no shared state, and neither limit.
  template <typename Body>
  void parallel_for(int count, Body&& body) {
    using Function = std::remove_reference_t<Body>;
    run(
        count, [](void* context, int index) { (*static_cast<Function*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using Call = void (*)(void* context, int index);

  void run(int count, Call call, void* context);
  void work_until_stopped();
  void take_indices();

  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  std::uint64_t loop_number_ = 0;  // guarded by mutex_, as all below but next_
  int busy_workers_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  int count_ = 0;
  std::atomic<int> next_{0};
  std::vector<std::thread> workers_;
};

}  // namespace terse::examples
