// The words of a key: where they are written, or compared with those of another one.

#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "table.h"

namespace aoti_eager {

// The words of one key; longer ones are on the heap. Nothing is cleared before it is written.
class Words {
 public:
  Words() : begin_(inline_), end_(inline_), limit_(inline_ + kInline) {}
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;

  // Returns where the next `count` words are to be written.
  [[gnu::always_inline]] Word* more(size_t count) {
    if (static_cast<size_t>(limit_ - end_) < count) [[unlikely]] {
      grow(count);
    }
    Word* place = end_;
    end_ += count;
    return place;
  }
  [[gnu::always_inline]] void push_back(Word word) {
    *more(1) = word;
  }

  // What a `KeyWriter` writes to: false, and it ends there, where the words are another key's.
  [[gnu::always_inline]] bool put(Word word) {
    push_back(word);
    return true;
  }
  [[gnu::always_inline]] bool put(Word word, c10::IntArrayRef sizes, c10::IntArrayRef strides) {
    const size_t count = sizes.size();
    Word* place = more(1 + 2 * count);
    *place++ = word;
    for (size_t i = 0; i < count; ++i) {
      place[i] = Word(sizes[i]);
      place[count + i] = Word(strides[i]);
    }
    return true;
  }

  const Word* begin() const {
    return begin_;
  }
  const Word* end() const {
    return end_;
  }
  const Word* data() const {
    return begin_;
  }
  size_t size() const {
    return end_ - begin_;
  }

 private:
  static constexpr size_t kInline = 96;

  [[gnu::noinline]] void grow(size_t count) {
    size_t used = size();
    size_t room = 2 * (used + count);
    std::unique_ptr<Word[]> larger(new Word[room]);
    std::copy(begin_, end_, larger.get());
    heap_ = std::move(larger);
    begin_ = heap_.get();
    end_ = begin_ + used;
    limit_ = begin_ + room;
  }

  Word* begin_;
  Word* end_;
  Word* limit_;
  std::unique_ptr<Word[]> heap_;
  Word inline_[kInline];
};

// The words of one key, compared with a call's in place of writing these: most calls of an op in a row
// have one key, and then nothing is to be written and looked up.
class Expected {
 public:
  Expected(const Word* words, size_t count) : at_(words), left_(count) {}

  [[gnu::always_inline]] bool put(Word word) {
    if (left_ == 0) {
      return false;
    }
    --left_;
    return *at_++ == word;
  }
  [[gnu::always_inline]] bool put(Word word, c10::IntArrayRef sizes, c10::IntArrayRef strides) {
    const size_t count = sizes.size();
    if (left_ < 1 + 2 * count || *at_ != word) {
      return false;
    }
    const Word* expected = at_ + 1;
    Word differences = 0;
    for (size_t i = 0; i < count; ++i) {
      differences |= (expected[i] ^ Word(sizes[i])) | (expected[count + i] ^ Word(strides[i]));
    }
    at_ += 1 + 2 * count;
    left_ -= 1 + 2 * count;
    return differences == 0;
  }

  // Whether that was all of them.
  bool is_at_end() const {
    return left_ == 0;
  }

 private:
  const Word* at_;
  size_t left_;
};

} // namespace aoti_eager
