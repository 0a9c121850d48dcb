// The hit path's C interface for `op_kernel.py`, which calls it through ctypes: no Python header is
// needed, and one build serves every Python.
//
// Functions that can fail return null or nonzero and leave a message for `ae_last_error`. Pointers
// that come in were given out here; each has one owner, a Python object.

#include "intrinsics.h"

#include "interface.h"
#include "op.h"
#include "typed.h"

namespace aoti_eager {
namespace {

void put(
    EntryTable* table, std::unique_ptr<Entry> entry, const int64_t* program, size_t count) {
  if (program != nullptr) {
    entry->pattern = std::make_unique<Pattern>(std::vector<int64_t>(program, program + count));
  }
  WriteGuard writing;
  if (program != nullptr) {
    table->put_pattern(std::move(entry));
  } else {
    table->put(std::move(entry));
  }
}

} // namespace
} // namespace aoti_eager

using namespace aoti_eager;

#pragma GCC visibility push(default)
extern "C" {

const char* ae_last_error() {
  return last_error().c_str();
}

// -- ops --

// `kinds` and `mutated` have one byte an argument. `above` is an op of ours that is registered
// already and has the original, or null.
// `is_function`: its original is a function of ops that autocast each for itself.
// `counts_writes`: a hit counts what it writes to, because the ops did that its original calls.
Op* ae_op_new(
    const char* name, const char* overload, const char* dispatch_key, const uint8_t* kinds,
    const uint8_t* mutated, size_t count, const Op* above, int32_t is_function,
    int32_t counts_writes) {
  Op* op = nullptr;
  guarded([&] {
    op = new Op(
        c10::Dispatcher::singleton().findSchemaOrThrow(name, overload),
        c10::parseDispatchKey(dispatch_key), arguments_of(kinds, mutated, count), above,
        is_function != 0, counts_writes != 0);
  });
  return op;
}

int32_t ae_op_install(Op* op) {
  return guarded([op] { op->install(); }) ? 0 : 1;
}

// Whether calls with C++ values have a kernel of their own; after `ae_op_install`.
int32_t ae_op_is_typed(const Op* op) {
  return op->is_typed();
}

// No call of the op may run: PyTorch's dispatcher has no lock for its readers.
void ae_op_uninstall(Op* op) {
  guarded([op] { op->uninstall(); });
}

void ae_op_delete(Op* op) {
  retire(op);
}

void ae_op_set_state(Op* op, int32_t state) {
  op->state.store(static_cast<State>(state), std::memory_order_release);
}

void ae_op_set_table(Op* op, EntryTable* table) {
  op->table.store(table, std::memory_order_seq_cst);
}

// Before the state says that they are used.
void ae_op_set_counters(Op* op, Counter* hits, Counter* always_declined) {
  op->hits.store(hits, std::memory_order_release);
  op->always_declined.store(always_declined, std::memory_order_release);
}

// -- tables --

EntryTable* ae_table_new() {
  EntryTable* table = nullptr;
  guarded([&] { table = new EntryTable; });
  return table;
}

// No op may have it any more.
void ae_table_delete(EntryTable* table) {
  retire(table);
}

// `results` has three numbers a result: kind, index, count. With a `program` (pattern.h) the words
// are a name, and calls are matched. `numbers` has a byte for each argument, or none: whether it is
// a number that the library takes as an input. `looks`: whether hits are compared once more at times.
void ae_table_put_library(
    EntryTable* table, const Word* words, size_t count, const Library* library,
    const int32_t* results, size_t results_count, uint64_t owner, const int64_t* program,
    size_t program_count, const uint8_t* numbers, size_t numbers_count, int32_t looks) {
  guarded([&] {
    std::vector<Result> plan;
    for (size_t i = 0; i < results_count; ++i) {
      const int32_t* one = results + 3 * i;
      plan.push_back({static_cast<Result::Kind>(one[0]), one[1], one[2]});
    }
    auto entry = std::make_unique<Entry>(words, count, *library, std::move(plan), owner);
    entry->numbers.assign(numbers, numbers + numbers_count);
    if (looks != 0) {
      entry->looks = std::make_unique<Looks>();
    }
    put(table, std::move(entry), program, program_count);
  });
}

void ae_table_put_decline(
    EntryTable* table, const Word* words, size_t count, Counter* declines, const int64_t* program,
    size_t program_count) {
  guarded([&] {
    put(table, std::make_unique<Entry>(words, count, declines), program, program_count);
  });
}

void ae_table_remove_pattern(EntryTable* table, const Word* name, size_t count) {
  guarded([&] {
    WriteGuard writing;
    table->remove_pattern(name, count);
  });
}

void ae_table_remove(EntryTable* table, const Word* words, size_t count) {
  guarded([&] {
    WriteGuard writing;
    table->remove(words, count);
  });
}

void ae_table_clear(EntryTable* table) {
  guarded([&] {
    WriteGuard writing;
    table->clear();
  });
}

// Whether a call's words match a program of pattern.h.
int32_t ae_matches(const int64_t* program, size_t count, const Word* words, size_t words_count) {
  return Pattern(std::vector<int64_t>(program, program + count)).matches(words, words_count);
}

size_t ae_table_size(EntryTable* table) {
  WriteGuard writing;
  return table->size();
}

// Gives the owners of libraries that no entry has any more; to be called until it gives none.
size_t ae_released(uint64_t* owners, size_t room) {
  { WriteGuard writing; } // frees what can be freed
  return Owners::instance().take_released(owners, room);
}

// -- counters --

Counter* ae_counter_new() {
  Counter* counter = nullptr;
  guarded([&] { counter = new Counter; });
  return counter;
}

void ae_counter_delete(Counter* counter) {
  retire(counter);
}

uint64_t ae_counter_value(const Counter* counter) {
  return counter->value();
}

// -- threads --

// Takes milliseconds, in which the thread sleeps; without it the first writer that frees something does.
void ae_ask_for_barriers() {
  ask_for_barriers();
}

void ae_passing_add(int32_t by) {
  Epochs::place().passing += by;
}

// Returns how many blocks there are around this thread in which calls are for originals.
int32_t ae_passing() {
  return Epochs::place().passing;
}

// `failed` is told of a run that failed, on its thread, before the Python kernel is entered.
void ae_set_failed(Failed failed_run) {
  failed().store(failed_run, std::memory_order_release);
}

// No hit is compared with the original before the steady clock shows this, in nanoseconds.
void ae_rest_looks(int64_t until_ns) {
  Looks::rest_until().store(until_ns, std::memory_order_relaxed);
}

// The number of the call that is compared after the call `number` of an entry.
uint64_t ae_next_look(uint64_t number) {
  return Looks::next(number);
}

// After how many calls a comparison is due again that was put off at the call `number`.
uint64_t ae_put_off(uint64_t number) {
  return Looks::put_off(number);
}

// Gives the key of this thread's last call of an op in the state "record".
size_t ae_recorded_key(Word* words, size_t room) {
  const std::vector<Word>& key = recorded_key().words;
  std::copy_n(key.begin(), std::min(room, key.size()), words);
  return key.size();
}

// Whether a typed kernel has read that key.
int32_t ae_recorded_by_typed() {
  return recorded_key().is_typed;
}

// -- what there is --

// Ops, registered kernels, tables, entries, what waits for its readers, kernels at the autograd key.
void ae_alive(int64_t* counts) {
  { WriteGuard writing; } // frees what can be freed
  counts[0] = Op::alive();
  counts[1] = Kernel::alive();
  counts[2] = EntryTable::alive();
  counts[3] = Entry::alive();
  WriteGuard writing;
  counts[4] = static_cast<int64_t>(Epochs::instance().retired());
  counts[5] = autograd_kernels_alive();
}

} // extern "C"
#pragma GCC visibility pop
