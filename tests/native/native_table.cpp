// The lock-free part of the hit path under threads: table.h, epochs.h and counters.h without torch.
//
//   g++ -std=c++20 -O1 -g -fsanitize=thread -I../../aoti_eager/_native/csrc native_table.cpp -o t && ./t 60 16
//
// Half of the threads look keys up in two tables that are swapped under them, the others put, replace,
// remove and clear. What a reader finds must be of its key and alive until it leaves. Prints what it
// counted; ends with status 1 and a line of what is wrong.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <thread>

#include "counters.h"
#include "epochs.h"
#include "table.h"

using namespace aoti_eager;

namespace {

void require(bool holds, const char* what) {
  if (!holds) {
    std::printf("WRONG: %s\n", what);
    std::fflush(stdout);
    std::_Exit(1);
  }
}

constexpr uint64_t kAlive = 0x11FE11FE11FE11FEull;

// Calls whose first word leaves this rest. The smaller the divisor, the less is known of them.
struct Rest {
  bool matches(const Word* words, size_t) const {
    compared.fetch_add(1, std::memory_order_relaxed);
    return words[0] % divisor == rest;
  }
  int64_t symbols() const {
    return divisor < 100 ? 2 : 1;
  }
  Word divisor, rest;
  inline static std::atomic<int> compared{0};
};

class Item : public Keyed, Counted<Item> {
 public:
  using Counted<Item>::alive;
  Item(const Word* words, size_t count) : Keyed(words, count), payload(words[0] * 3) {}
  ~Item() {
    canary = 0;
  }
  Word payload;
  std::unique_ptr<Rest> pattern;
  volatile uint64_t canary = kAlive;
};

using Items = Table<Item>;

struct Key {
  explicit Key(Word number) {
    for (Word i = 0; i < 11; ++i) {
      words[i] = number + i * 8;
    }
  }
  Word words[11];
};

std::unique_ptr<Item> of_rest(Word name, Word divisor, Word rest) {
  auto item = std::make_unique<Item>(&name, 1);
  item->pattern = std::make_unique<Rest>(Rest{divisor, rest});
  return item;
}

void test_patterns() {
  auto table = std::make_unique<Items>();
  constexpr Word kCount = 500;
  {
    WriteGuard writing;
    table->put(std::make_unique<Item>(Key(3).words, 11));
    for (Word rest = 0; rest < kCount; ++rest) {
      table->put_pattern(of_rest(rest, kCount, rest));
    }
    require(table->size() == kCount + 1, "the size with patterns");
  }
  auto found = [&](Word number) {
    ReadGuard reading(Epochs::place());
    return table->find(Key(number).words, 11);
  };
  require(found(3)->pattern == nullptr, "a key's own entry comes first");
  for (int turn = 0; turn < 3; ++turn) { // from where they were found the last time, too
    for (Word number = 0; number < 5 * kCount; number += 7) {
      require(found(number)->pattern->rest == number % kCount, "the entry whose pattern matches");
    }
  }
  auto compared = [&](Word number) {
    int before = Rest::compared.load();
    require(found(number) != nullptr, "a call that was found before");
    return Rest::compared.load() - before;
  };
  require(compared(kCount - 1) > 400, "a call that comes first is compared with all before it");
  require(compared(kCount - 1) == 1, "a call that comes again is found at once");
  {
    WriteGuard writing;
    for (Word rest = 0; rest < kCount; rest += 2) {
      require(table->remove_pattern(&rest, 1), "a removal of a pattern");
      require(!table->remove_pattern(&rest, 1), "a second removal of a pattern");
    }
    table->put_pattern(of_rest(kCount, 1, 0)); // all calls
    Word name = 1; // Instead of the one of this name; it knows as much as the others.
    table->put_pattern(of_rest(name, kCount, 1));
    require(table->size() == kCount / 2 + 2, "the size after removals of patterns");
  }
  // Whatever was found before, in the same place of those that are remembered or not.
  for (int turn = 0; turn < 3; ++turn) {
    for (Word number = kCount; number < 20 * kCount; ++number) {
      require(
          found(number)->pattern->divisor == (number % 2 ? kCount : 1),
          "the first that matches, with the fewest symbols");
    }
  }
  {
    WriteGuard writing;
    for (Word name = 1; name <= kCount; ++name) {
      table->remove_pattern(&name, 1);
    }
    require(table->size() == 1, "the size after all patterns were removed");
  }
  require(found(kCount + 1) == nullptr, "a call of a pattern that was removed");
  table.reset();
  { WriteGuard writing; }
  require(Item::alive() == 0, "entries with patterns that are left");
}

void test_one_thread() {
  auto table = std::make_unique<Items>();
  constexpr Word kCount = 20'000;
  {
    WriteGuard writing;
    for (Word i = 0; i < kCount; ++i) {
      table->put(std::make_unique<Item>(Key(i).words, 11));
    }
    require(table->size() == kCount, "the size after puts");
    table->put(std::make_unique<Item>(Key(7).words, 11));
    require(table->size() == kCount, "the size after a replacement");
  }
  ReadGuard reading(Epochs::place());
  for (Word i = 0; i < kCount; ++i) {
    Item* found = table->find(Key(i).words, 11);
    require(found != nullptr && found->payload == i * 3, "a key that was put in");
  }
  require(table->find(Key(kCount).words, 11) == nullptr, "a key that was not put in");
  require(table->find(Key(1).words, 10) == nullptr, "a key that is a part of another");
  reading.end();
  {
    WriteGuard writing;
    for (Word i = 0; i < kCount; i += 2) {
      require(table->remove(Key(i).words, 11), "a removal");
      require(!table->remove(Key(i).words, 11), "a second removal");
    }
    // Removed places are used again, or an op whose keys come and go would grow for ever.
    for (int round = 0; round < 50; ++round) {
      for (Word i = 0; i < 1000; ++i) {
        table->put(std::make_unique<Item>(Key(1'000'000 + i).words, 11));
      }
      for (Word i = 0; i < 1000; ++i) {
        table->remove(Key(1'000'000 + i).words, 11);
      }
    }
    require(table->size() == kCount / 2, "the size after removals");
    table->clear();
    require(table->size() == 0, "the size after clear");
  }
  table.reset();
  require(Item::alive() == 0, "entries that are left");
}

// Neighbours in size and stride must not fill neighbouring places: probing would be a walk.
void test_hash() {
  constexpr size_t kCount = 10'000;
  constexpr size_t kMask = (1 << 15) - 1;
  std::set<size_t> places;
  for (Word rows = 0; rows < kCount; ++rows) {
    Word words[] = {1, rows, 8, 8, 1, 1, rows, 8, 8, 1, 12};
    places.insert(hash_words(words, 11) & kMask);
  }
  // 10,000 balls into 32,768 bins meet each other 1,400 times.
  std::printf("hash: %zu places for %zu keys\n", places.size(), kCount);
  require(places.size() > kCount * 8 / 10, "the hash spreads keys");
}

void test_many_threads(double seconds, int threads) {
  constexpr Word kKeys = 200;
  std::atomic<Items*> current{new Items};
  std::atomic<bool> stop{false};
  Counter found_count;
  std::atomic<uint64_t> found_total{0}, looked_total{0}, written_total{0};

  auto read = [&](unsigned seed) {
    std::minstd_rand random(seed);
    uint64_t looked = 0, found = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      Key key(random() % kKeys);
      Participant& place = Epochs::place();
      ReadGuard reading(place);
      Items* table = current.load(std::memory_order_seq_cst);
      Item* item = table->find(key.words, 11);
      ++looked;
      if (item != nullptr) {
        require(item->canary == kAlive, "an entry was freed under its reader");
        bool is_right = item->pattern == nullptr ? item->payload == key.words[0] * 3
                                                 : item->pattern->matches(key.words, 11);
        require(is_right, "an entry of another key");
        {
          ReadGuard again(place); // a library that calls an op of ours
          require(current.load()->find(key.words, 11) != reinterpret_cast<Item*>(1), "nested");
        }
        require(item->canary == kAlive, "an entry was freed under its reader after a nested one");
        found_count.add(place);
        ++found;
      }
    }
    looked_total += looked;
    found_total += found;
  };
  auto write = [&](unsigned seed) {
    std::minstd_rand random(seed);
    uint64_t written = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      WriteGuard writing;
      Items* table = current.load(std::memory_order_relaxed);
      for (int i = 0; i < 20; ++i, ++written) {
        Key key(random() % kKeys);
        unsigned what = random() % 100;
        Word rest = key.words[0] % 40;
        if (what < 50) {
          table->put(std::make_unique<Item>(key.words, 11));
        } else if (what < 55) {
          table->put_pattern(of_rest(rest, 40, rest));
        } else if (what < 60) {
          table->remove_pattern(&rest, 1);
        } else if (what < 98) {
          table->remove(key.words, 11);
        } else if (what < 99) {
          table->clear();
        } else {
          auto* other = new Items;
          current.store(other, std::memory_order_seq_cst);
          Epochs::instance().retire(table, [](void* one) { delete static_cast<Items*>(one); });
          table = other;
        }
      }
    }
    written_total += written;
  };
  // Threads come and go: their places are used again.
  auto visit = [&](unsigned seed) {
    while (!stop.load(std::memory_order_relaxed)) {
      std::thread([&] {
        Participant& place = Epochs::place();
        ReadGuard reading(place);
        Item* item = current.load()->find(Key(seed % kKeys).words, 11);
        require(item == nullptr || item->canary == kAlive, "an entry was freed under a visitor");
      }).join();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i) {
    if (i % 8 == 7) {
      all.emplace_back(visit, i);
    } else if (i % 2) {
      all.emplace_back(write, i);
    } else {
      all.emplace_back(read, i);
    }
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (std::thread& thread : all) {
    thread.join();
  }
  require(found_count.value() == found_total.load(), "the counter is exact");
  {
    delete current.load();
    { WriteGuard writing; }
    WriteGuard writing;
    require(Epochs::instance().retired() == 0, "nothing is retired for ever");
  }
  require(Item::alive() == 0, "entries that are left");
  require(Items::alive() == 0, "tables that are left");
  std::printf(
      "threads: %d, looked up: %llu, found: %llu, written: %llu\n", threads,
      static_cast<unsigned long long>(looked_total.load()),
      static_cast<unsigned long long>(found_total.load()),
      static_cast<unsigned long long>(written_total.load()));
}

} // namespace

int main(int argc, char** argv) {
  double seconds = argc > 1 ? std::atof(argv[1]) : 5;
  int threads = argc > 2 ? std::atoi(argv[2]) : 16;
  test_one_thread();
  test_patterns();
  test_hash();
  test_many_threads(seconds, threads);
  std::printf("all right\n");
  return 0;
}
