// What a call must look like for a dynamic specialisation: a row of words of which some are symbols
// or follow from symbols, and conditions. `_keys/pattern_program.py` writes the program, and `_keys/guards.py`
// says the same in Python; a property-based test holds the two to each other.
//
//   words, symbols, conditions               three counts
//   kind, value                              for each word
//   lowest, highest                          for each symbol
//   start                                    for each condition, in the code
//   code                                     expressions in postfix form, each with an end
//
// Values are int64. What overflows or divides by zero is no match.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <c10/util/SmallVector.h>

namespace aoti_eager {

class Pattern {
 public:
  explicit Pattern(std::vector<int64_t> program) : program_(std::move(program)) {
    const int64_t* at = program_.data();
    words_ = at[0];
    symbols_ = at[1];
    conditions_ = at[2];
    word_ = at + 3;
    range_ = word_ + 2 * words_;
    start_ = range_ + 2 * symbols_;
    code_ = start_ + conditions_;
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // How many there are: the more, the less is known of a call.
  int64_t symbols() const {
    return symbols_;
  }

  // A word that binds a symbol comes before those that repeat it or follow from it.
  bool matches(const uint64_t* words, size_t count) const {
    if (static_cast<int64_t>(count) != words_) {
      return false;
    }
    for (int64_t i = 0; i < words_; ++i) {
      if (word_[2 * i] == kFixed && static_cast<int64_t>(words[i]) != word_[2 * i + 1]) {
        return false;
      }
    }
    c10::SmallVector<int64_t, 16> values(symbols_);
    for (int64_t i = 0; i < words_; ++i) {
      int64_t value = static_cast<int64_t>(words[i]);
      int64_t what = word_[2 * i + 1];
      if (word_[2 * i] == kBinds) {
        if (value < range_[2 * what] || value > range_[2 * what + 1]) {
          return false;
        }
        values[what] = value;
      } else if (word_[2 * i] == kRepeats && values[what] != value) {
        return false;
      }
    }
    int64_t result = 0;
    for (int64_t i = 0; i < words_; ++i) {
      if (word_[2 * i] == kFollows &&
          !(evaluate(word_[2 * i + 1], values.data(), result) &&
            result == static_cast<int64_t>(words[i]))) {
        return false;
      }
    }
    for (int64_t i = 0; i < conditions_; ++i) {
      if (!evaluate(start_[i], values.data(), result) || result == 0) {
        return false;
      }
    }
    return true;
  }

 private:
  enum Kind : int64_t { kFixed = 0, kBinds = 1, kRepeats = 2, kFollows = 3 };
  enum Code : int64_t {
    kEnd = 0,
    kPush = 1, // value
    kSymbol = 2, // number
    kAdd = 3,
    kMultiply = 4,
    kLeast = 5,
    kMost = 6,
    kDivide = 7, // towards minus infinity
    kModulo = 8, // with the divisor's sign
    kEqual = 9,
    kNotEqual = 10,
    kLess = 11,
    kAtMost = 12,
    kNot = 13,
    kKeepIfZero = 14, // where to go on, with the zero; else the value is dropped
    kKeepIfNot = 15,
    kTruth = 16,
  };

  // False if the expression has no value.
  bool evaluate(int64_t start, const int64_t* symbols, int64_t& result) const {
    c10::SmallVector<int64_t, 16> stack;
    for (const int64_t* at = code_ + start;;) {
      int64_t code = *at++;
      switch (code) {
        case kEnd:
          result = stack.back();
          return true;
        case kPush:
          stack.push_back(*at++);
          continue;
        case kSymbol:
          stack.push_back(symbols[*at++]);
          continue;
        case kNot:
          stack.back() = stack.back() == 0;
          continue;
        case kTruth:
          stack.back() = stack.back() != 0;
          continue;
        case kKeepIfZero:
        case kKeepIfNot: {
          int64_t target = *at++;
          if ((stack.back() == 0) == (code == kKeepIfZero)) {
            at = code_ + target;
          } else {
            stack.pop_back();
          }
          continue;
        }
        default:
          break;
      }
      int64_t right = stack.back();
      stack.pop_back();
      int64_t& left = stack.back();
      if (!combine(code, left, right)) {
        return false;
      }
    }
  }

  static bool combine(int64_t code, int64_t& left, int64_t right) {
    switch (code) {
      case kAdd:
        return !__builtin_add_overflow(left, right, &left);
      case kMultiply:
        return !__builtin_mul_overflow(left, right, &left);
      case kLeast:
        left = left < right ? left : right;
        return true;
      case kMost:
        left = left < right ? right : left;
        return true;
      case kDivide:
      case kModulo: {
        if (right == 0 || (right == -1 && left == INT64_MIN && code == kDivide)) {
          return false;
        }
        int64_t rest = right == -1 ? 0 : left % right;
        bool apart = rest != 0 && (rest < 0) != (right < 0);
        left = code == kModulo ? (apart ? rest + right : rest) : left / right - apart;
        return true;
      }
      case kEqual:
        left = left == right;
        return true;
      case kNotEqual:
        left = left != right;
        return true;
      case kLess:
        left = left < right;
        return true;
      case kAtMost:
        left = left <= right;
        return true;
      default:
        return false;
    }
  }

  std::vector<int64_t> program_;
  int64_t words_;
  int64_t symbols_;
  int64_t conditions_;
  const int64_t* word_;
  const int64_t* range_;
  const int64_t* start_;
  const int64_t* code_;
};

} // namespace aoti_eager
