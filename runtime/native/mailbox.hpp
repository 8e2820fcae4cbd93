// A queue that hands over everything it holds at once. Any number of threads put; one takes.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

namespace slipway {

template <class T> class Mailbox {
 public:
  using Seconds = std::chrono::duration<double>;

  // False once closed; the item is dropped.
  bool put(T item) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      items_.push_back(std::move(item));
    }
    filled_.notify_one();
    return true;
  }

  void put_all(std::vector<T> items) {
    if (items.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      std::move(items.begin(), items.end(), std::back_inserter(items_));
    }
    filled_.notify_one();
  }

  // Everything there is, in order, after waiting up to `patience` for the first.
  std::vector<T> take(Seconds patience) {
    std::unique_lock lock(mutex_);
    if (patience > Seconds::zero()) filled_.wait_for(lock, patience, [this] { return closed_ || !items_.empty(); });
    return std::exchange(items_, {});
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    filled_.notify_all();
  }

  bool ended() const {  // closed, and all was taken
    const std::lock_guard lock(mutex_);
    return closed_ && items_.empty();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable filled_;
  std::vector<T> items_;
  bool closed_ = false;
};

}  // namespace slipway
