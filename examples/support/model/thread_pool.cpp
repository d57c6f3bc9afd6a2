#include "thread_pool.hpp"

#include <utility>

namespace terse::examples {

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this] { work_until_stopped(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::run(int count, Call call, void* context) {
  if (workers_.empty()) {
    for (int i = 0; i < count; ++i) call(context, i);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    call_ = call;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_workers_ = static_cast<int>(workers_.size());
    ++loop_number_;
  }
  start_.notify_all();
  take_indices();
  std::exception_ptr failure;
  {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_workers_ == 0; });
    failure = std::exchange(failure_, nullptr);
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

void ThreadPool::work_until_stopped() {
  std::uint64_t finished_loop = 0;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return stopping_ || loop_number_ != finished_loop; });
      if (stopping_) {
        return;
      }
      finished_loop = loop_number_;
    }
    take_indices();
    {
      const std::lock_guard lock(mutex_);
      --busy_workers_;
    }
    done_.notify_one();
  }
}

void ThreadPool::take_indices() {
  try {
    for (int i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      call_(context_, i);
    }
  } catch (...) {
    next_.store(count_);
    const std::lock_guard lock(mutex_);
    if (!failure_) {
      failure_ = std::current_exception();
    }
  }
}

}  // namespace terse::examples
