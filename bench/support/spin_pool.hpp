/// Threads that wait for loops by spinning: the few microseconds that waking a thread takes would
/// otherwise be a tenth of a small attention call. For benchmarks on an otherwise idle machine.
#pragma once

#include <atomic>
#include <thread>
#include <type_traits>
#include <vector>

namespace terse::bench {

class SpinPool {
 public:
  explicit SpinPool(int threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this] { wait_for_loops(); });
    }
  }
  ~SpinPool() {
    stopping_ = true;
    ++loop_;
    for (std::thread& worker : workers_) worker.join();
  }
  SpinPool(const SpinPool&) = delete;
  SpinPool& operator=(const SpinPool&) = delete;

  /// Calls f(0) ... f(count - 1) on all threads and returns when all are done.
  template <class F>
  void operator()(int count, F&& f) {
    call_ = [](void* context, int i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); };
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    ++loop_;
    take_indices();
    while (busy_.load(std::memory_order_acquire) != 0) pause();
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  void take_indices() {
    for (int i = next_++; i < count_; i = next_++) call_(context_, i);
  }
  void wait_for_loops() {
    unsigned seen = 0;
    while (true) {
      while (loop_.load(std::memory_order_acquire) == seen) pause();
      if (stopping_) return;
      ++seen;
      take_indices();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void (*call_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int count_ = 0;
  std::atomic<int> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<unsigned> loop_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace terse::bench
