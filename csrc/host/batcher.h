// A queue that releases requests in batches: when a batch is full, or when its oldest request has waited for most of the
// bound; the rest of the bound is for the worker thread to wake up and start. Requests are ids that the caller maps to
// its own objects. Any number of threads may put and take.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <numeric>
#include <vector>

namespace reasonrec {

class Batcher {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Answer { kTaken, kFull, kClosed };

  // max_size of a batch and capacity of the queue are in the units of the requests' sizes.
  Batcher(int64_t max_size, double max_wait_seconds, int64_t capacity)
      : max_size_(max_size),
        wait_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kShare * max_wait_seconds))),
        capacity_(capacity) {}

  // Adds all requests, next to each other, or none.
  Answer put(const std::vector<int64_t>& ids, const std::vector<int64_t>& sizes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return Answer::kClosed;
      const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
      if (queued_ + total > capacity_) return Answer::kFull;
      const Clock::time_point due = Clock::now() + wait_;
      for (size_t i = 0; i < ids.size(); ++i) queue_.push_back({ids[i], sizes[i], due});
      queued_ += total;
    }
    // Wake all: one worker may wait for a first request, another for its batch to fill.
    changed_.notify_all();
    return Answer::kTaken;
  }

  // Waits for the next batch, oldest request first. Empty once the queue is closed and drained.
  std::vector<int64_t> take() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return {};
      if (closed_ || queued_ >= max_size_ || Clock::now() >= queue_.front().due) return pop();
      changed_.wait_until(lock, queue_.front().due);
    }
  }

  // Refuses further requests; those in the queue are still released.
  void close() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }

  int64_t queued() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return queued_;
  }

 private:
  struct Request {
    int64_t id, size;
    Clock::time_point due;
  };

  static constexpr double kShare = 0.8;  // of the bound, after which a batch is released

  // As many requests as fit into a batch, at least one.
  std::vector<int64_t> pop() {
    std::vector<int64_t> batch;
    int64_t size = 0;
    while (!queue_.empty() && (batch.empty() || size + queue_.front().size <= max_size_)) {
      size += queue_.front().size;
      batch.push_back(queue_.front().id);
      queue_.pop_front();
    }
    queued_ -= size;
    return batch;
  }

  const int64_t max_size_;
  const Clock::duration wait_;
  const int64_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> queue_;
  int64_t queued_ = 0;
  bool closed_ = false;
};

}  // namespace reasonrec
