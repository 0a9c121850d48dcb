// The entries with patterns of one table, in the order in which calls are compared with them: those
// with fewer symbols, which know more of their calls, first; then those that came first.
//
// An op may have hundreds (kernels times size classes) while a script makes few different calls, so
// where a call was found is remembered by its hash, until another call needs the place. The list
// itself is never changed: another one comes in its stead, which begins with nothing remembered.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace aoti_eager {

template <class Entry>
class PatternList {
 public:
  PatternList() = default;

  // The same entries, with room for one more.
  explicit PatternList(const PatternList& other) {
    entries_.reserve(other.entries_.size() + 1);
    entries_.assign(other.entries_.begin(), other.entries_.end());
  }
  PatternList& operator=(const PatternList&) = delete;

  // Returns the first entry whose pattern a call matches, or null; `hash` is that of its words.
  Entry* find(const uint64_t* words, size_t count, uint64_t hash) {
    if (entries_.empty()) {
      return nullptr;
    }
    if (entries_.size() == 1) { // nothing to remember
      return entries_[0]->pattern->matches(words, count) ? entries_[0] : nullptr;
    }
    std::atomic<uint64_t>& place = places_[hash % kPlaces];
    uint64_t last = place.load(std::memory_order_relaxed);
    if ((last & ~kIndex) == (hash & ~kIndex) && (last & kIndex) < entries_.size()) {
      // Matched although it is known to: two calls may have one hash.
      Entry* guess = entries_[last & kIndex];
      if (guess->pattern->matches(words, count)) {
        return guess;
      }
    }
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i]->pattern->matches(words, count)) {
        if (i <= kIndex) {
          place.store((hash & ~kIndex) | i, std::memory_order_relaxed);
        }
        return entries_[i];
      }
    }
    return nullptr;
  }

  // Puts an entry in, for which a copy has room; throws nothing.
  void insert(Entry* entry) noexcept {
    auto place = entries_.begin();
    while (place != entries_.end() && (*place)->pattern->symbols() <= entry->pattern->symbols()) {
      ++place;
    }
    entries_.insert(place, entry);
  }

  // Takes the entry of this name out and returns it, or null.
  Entry* take_out(const uint64_t* name, size_t count) {
    for (auto place = entries_.begin(); place != entries_.end(); ++place) {
      if ((*place)->has_key(name, count)) {
        Entry* found = *place;
        entries_.erase(place);
        return found;
      }
    }
    return nullptr;
  }

  const std::vector<Entry*>& entries() const {
    return entries_;
  }

 private:
  static constexpr size_t kPlaces = 128;
  static constexpr uint64_t kIndex = 0xFFFF; // the bits of a place that are no hash

  std::vector<Entry*> entries_;
  // By hash, where in `entries_` its call was found last, under what is left of the hash.
  std::array<std::atomic<uint64_t>, kPlaces> places_{};
};

} // namespace aoti_eager
