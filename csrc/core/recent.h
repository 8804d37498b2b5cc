// What was built for the last few keys. Building it takes as long as a good part of an op itself, and a video network
// asks for the same at every clip.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

namespace clipsight {

/// Safe to use from any thread. What it hands out is immutable, so threads and calls can share it.
template <class Key, class Value>
class Recent {
 public:
  explicit Recent(std::size_t kept) : kept_(kept) {}

  /// The value of the key; where it is not known, what `build` returns.
  template <class Build>
  std::shared_ptr<const Value> get(const Key& key, Build build) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [known, value] : values_) {
        if (known == key) return value;
      }
    }
    auto value = std::make_shared<const Value>(build());
    const std::lock_guard<std::mutex> lock(mutex_);
    values_.emplace_front(key, value);
    if (values_.size() > kept_) values_.pop_back();
    return value;
  }

 private:
  std::size_t kept_;
  std::mutex mutex_;
  std::deque<std::pair<Key, std::shared_ptr<const Value>>> values_;
};

}  // namespace clipsight
