// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <exception>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace sdpa::metal {

/// How much a cache may hold.
struct CacheLimits {
  std::size_t entries = 64;
  std::size_t bytes = std::size_t{256} << 20;
};

/// A value with what it costs to keep.
template <class Value>
struct Costed {
  std::shared_ptr<Value> value;
  std::size_t bytes = 0;
};

/// Values that are slow to make, the least recently used dropped first.
///
/// Safe under threads. Each value is made once: whoever asks for one that is being made waits for
/// it. Users share in a value, so one that is dropped here lives on as long as it is in use. A
/// failure to make a value goes to all who wait for it, and is forgotten.
template <class Key, class Value>
class LruCache {
 public:
  using Shared = std::shared_ptr<Value>;

  explicit LruCache(CacheLimits limits) : limits_(limits) {}

  /// The value of a key; `make()` gives it as Costed<Value> where there is none.
  template <class Make>
  Shared find_or_make(const Key& key, const Make& make) {
    std::promise<Shared> promise;
    std::shared_future<Shared> future;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = entries_.find(key); found != entries_.end()) {
        order_.splice(order_.begin(), order_, found->second.place);
        future = found->second.value;
      } else {
        order_.push_front(key);
        entries_[key] = {promise.get_future().share(), order_.begin()};
      }
    }
    return future.valid() ? future.get() : fill(key, make, promise);
  }

  /// Drops every value that is not being made. Used when memory runs out.
  void clear() {
    const std::lock_guard lock(mutex_);
    drop_until({.entries = 0, .bytes = 0});
  }

  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return entries_.size();
  }

  std::size_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    std::shared_future<Shared> value;
    typename std::list<Key>::iterator place;
    std::size_t bytes = 0;
    bool is_made = false;
  };

  template <class Make>
  Shared fill(const Key& key, const Make& make, std::promise<Shared>& promise) {
    Costed<Value> made;
    try {
      made = make();
    } catch (...) {
      forget(key);
      promise.set_exception(std::current_exception());
      throw;
    }
    promise.set_value(made.value);
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_.at(key);
    entry.bytes = made.bytes;
    entry.is_made = true;
    bytes_ += made.bytes;
    drop_until(limits_);
    return made.value;
  }

  void forget(const Key& key) {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    order_.erase(found->second.place);
    entries_.erase(found);
  }

  void drop_until(CacheLimits limits) {
    auto place = order_.end();
    while (place != order_.begin() && (entries_.size() > limits.entries || bytes_ > limits.bytes)) {
      const auto found = entries_.find(*--place);
      if (!found->second.is_made) continue;
      bytes_ -= found->second.bytes;
      entries_.erase(found);
      place = order_.erase(place);
    }
  }

  const CacheLimits limits_;
  mutable std::mutex mutex_;  // of all below
  std::list<Key> order_;      // the most recently used first
  std::map<Key, Entry> entries_;
  std::size_t bytes_ = 0;
};

}  // namespace sdpa::metal
