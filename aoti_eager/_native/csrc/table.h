// Key -> what becomes of a call: found by readers without a lock, changed by one writer at a time.
//
// Open addressing. A slot is written once from empty; a changed entry replaces the pointer in its
// slot, a removed one leaves a mark that probing steps over. When more than half of the slots are
// used, all live entries move to a larger array, and the old one is retired (epochs.h). So a reader
// that has entered an epoch follows pointers that stay good until it leaves.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "counters.h"
#include "epochs.h"
#include "pattern_list.h"

namespace aoti_eager {

using Word = uint64_t;

// Not cryptographic: the full key is compared. Each word is multiplied in, so that neighbours in
// size and stride do not meet.
inline uint64_t hash_words(const Word* words, size_t count) {
  uint64_t hash = 0x9E3779B97F4A7C15ull ^ count;
  for (size_t i = 0; i < count; ++i) {
    hash = (hash ^ words[i]) * 0xD6E8FEB86659FD93ull;
    hash ^= hash >> 32;
  }
  return hash;
}

// What a table holds must have a key to be found by.
class Keyed {
 public:
  Keyed(const Word* words, size_t count)
      : words_(words, words + count), hash_(hash_words(words, count)) {}

  bool has_key(const Word* words, size_t count) const {
    if (words_.size() != count) {
      return false;
    }
    return std::equal(words, words + count, words_.begin());
  }

  uint64_t hash() const {
    return hash_;
  }

  const std::vector<Word>& words() const {
    return words_;
  }

 private:
  std::vector<Word> words_;
  uint64_t hash_;
};

// Entry derives from Keyed and has `pattern`, null or what calls without an entry of their own must
// match. What changes the table is called while `WriteGuard`.
template <class Entry>
class Table : Counted<Table<Entry>> {
 public:
  using Counted<Table<Entry>>::alive;

  Table() : slots_(new Slots(kSmallest)) {}

  // Only when no reader can have the table: retire it otherwise.
  ~Table() {
    Slots* slots = slots_.load(std::memory_order_relaxed);
    for (size_t i = 0; i <= slots->mask; ++i) {
      Entry* entry = slots->at(i).load(std::memory_order_relaxed);
      if (is_live(entry)) {
        delete entry;
      }
    }
    delete slots;
    Patterns* patterns = patterns_.load(std::memory_order_relaxed);
    for (Entry* entry : patterns->entries()) {
      delete entry;
    }
    delete patterns;
  }

  // Returns the entry that was found last, or another, or null. The caller is in an epoch.
  Entry* last() {
    // Most calls of an op in a row are of one key. The place is remembered, not the entry: what is
    // read from a slot is alive, and a pointer kept elsewhere might not be.
    Slots* slots = slots_.load(std::memory_order_seq_cst);
    Entry* found = slots->at(last_.load(std::memory_order_relaxed) & slots->mask)
                       .load(std::memory_order_seq_cst);
    return is_live(found) ? found : nullptr;
  }

  // Returns the entry of a key, or null: its own, or the first whose pattern it matches. The caller
  // is in an epoch.
  Entry* find(const Word* words, size_t count) {
    Entry* before = last();
    if (before != nullptr && before->has_key(words, count)) {
      return before;
    }
    Slots* slots = slots_.load(std::memory_order_seq_cst);
    uint64_t hash = hash_words(words, count);
    if (Entry* entry = find_own(slots, words, count, hash)) {
      return entry;
    }
    return patterns_.load(std::memory_order_seq_cst)->find(words, count, hash);
  }

  // Puts an entry with a pattern in, instead of one with its key, which is a name and no call's.
  void put_pattern(std::unique_ptr<Entry> entry) {
    auto after = std::make_unique<Patterns>(*patterns_.load(std::memory_order_relaxed));
    const std::vector<Word>& name = entry->words();
    Entry* before = after->take_out(name.data(), name.size());
    after->insert(entry.release());
    replace_patterns(after.release(), before);
  }

  bool remove_pattern(const Word* name, size_t count) {
    auto after = std::make_unique<Patterns>(*patterns_.load(std::memory_order_relaxed));
    Entry* before = after->take_out(name, count);
    if (before == nullptr) {
      return false;
    }
    replace_patterns(after.release(), before);
    return true;
  }

  // Puts an entry in, instead of one with its key if there is one.
  void put(std::unique_ptr<Entry> entry) {
    const std::vector<Word>& words = entry->words();
    std::atomic<Entry*>* slot = find_slot(words.data(), words.size(), entry->hash());
    if (slot != nullptr) {
      Entry* before = slot->load(std::memory_order_relaxed);
      slot->store(entry.release(), std::memory_order_seq_cst);
      retire(before);
      return;
    }
    Slots* slots = slots_.load(std::memory_order_relaxed);
    if ((slots->used + 1) * 2 > slots->mask + 1) {
      slots = grow(slots);
    }
    slots->insert(entry.release());
    ++size_;
  }

  // Takes the entry of a key out; returns whether there was one.
  bool remove(const Word* words, size_t count) {
    std::atomic<Entry*>* slot = find_slot(words, count, hash_words(words, count));
    if (slot == nullptr) {
      return false;
    }
    Entry* before = slot->load(std::memory_order_relaxed);
    slot->store(removed(), std::memory_order_seq_cst);
    retire(before);
    --size_;
    return true;
  }

  void clear() {
    Slots* before = slots_.load(std::memory_order_relaxed);
    slots_.store(new Slots(kSmallest), std::memory_order_seq_cst);
    for (size_t i = 0; i <= before->mask; ++i) {
      Entry* entry = before->at(i).load(std::memory_order_relaxed);
      if (is_live(entry)) {
        retire(entry);
      }
    }
    Epochs::instance().retire(before, [](void* slots) { delete static_cast<Slots*>(slots); });
    size_ = 0;
    auto* none = new Patterns;
    Patterns* patterns = patterns_.exchange(none, std::memory_order_seq_cst);
    for (Entry* entry : patterns->entries()) {
      retire(entry);
    }
    retire_patterns(patterns);
  }

  size_t size() const {
    return size_ + patterns_.load(std::memory_order_relaxed)->entries().size();
  }

 private:
  using Patterns = PatternList<Entry>;

  static constexpr size_t kSmallest = 16;

  struct Slots {
    explicit Slots(size_t count) : mask(count - 1), slots(new std::atomic<Entry*>[count]) {
      for (size_t i = 0; i < count; ++i) {
        slots[i].store(nullptr, std::memory_order_relaxed);
      }
    }
    std::atomic<Entry*>& at(size_t index) {
      return slots[index];
    }
    void insert(Entry* entry) {
      size_t i = entry->hash();
      while (at(i & mask).load(std::memory_order_relaxed) != nullptr) {
        ++i;
      }
      at(i & mask).store(entry, std::memory_order_seq_cst);
      ++used;
    }
    size_t mask;
    size_t used = 0; // slots that are not empty, removed ones included
    std::unique_ptr<std::atomic<Entry*>[]> slots;
  };

  static Entry* removed() {
    return reinterpret_cast<Entry*>(alignof(Entry));
  }

  static bool is_live(const Entry* entry) {
    return entry != nullptr && entry != removed();
  }

  Entry* find_own(Slots* slots, const Word* words, size_t count, uint64_t hash) {
    for (size_t i = hash;; ++i) {
      Entry* entry = slots->at(i & slots->mask).load(std::memory_order_seq_cst);
      if (entry == nullptr) {
        return nullptr;
      }
      if (entry != removed() && entry->hash() == hash && entry->has_key(words, count)) {
        last_.store(i, std::memory_order_relaxed);
        return entry;
      }
    }
  }

  std::atomic<Entry*>* find_slot(const Word* words, size_t count, uint64_t hash) {
    Slots* slots = slots_.load(std::memory_order_relaxed);
    for (size_t i = hash;; ++i) {
      std::atomic<Entry*>& slot = slots->at(i & slots->mask);
      Entry* entry = slot.load(std::memory_order_relaxed);
      if (entry == nullptr) {
        return nullptr;
      }
      if (entry != removed() && entry->has_key(words, count)) {
        return &slot;
      }
    }
  }

  Slots* grow(Slots* before) {
    size_t count = before->mask + 1;
    // As large as before where removed entries had filled it.
    auto* after = new Slots((size_ + 1) * 4 > count ? count * 2 : count);
    for (size_t i = 0; i <= before->mask; ++i) {
      Entry* entry = before->at(i).load(std::memory_order_relaxed);
      if (is_live(entry)) {
        after->insert(entry);
      }
    }
    slots_.store(after, std::memory_order_seq_cst);
    Epochs::instance().retire(before, [](void* slots) { delete static_cast<Slots*>(slots); });
    return after;
  }

  void replace_patterns(Patterns* after, Entry* gone) {
    retire_patterns(patterns_.exchange(after, std::memory_order_seq_cst));
    if (gone != nullptr) {
      retire(gone);
    }
  }

  static void retire_patterns(Patterns* patterns) {
    Epochs::instance().retire(patterns, [](void* one) { delete static_cast<Patterns*>(one); });
  }

  static void retire(Entry* entry) {
    Epochs::instance().retire(entry, [](void* one) { delete static_cast<Entry*>(one); });
  }

  std::atomic<size_t> last_{0};
  std::atomic<Slots*> slots_;
  std::atomic<Patterns*> patterns_{new Patterns};
  size_t size_ = 0;
};

} // namespace aoti_eager
