// How many instructions a Python function's call takes: see instructions.py.

#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <ucontext.h>

#ifndef __x86_64__
#error "steps are counted by a flag of x86-64"
#endif

extern void* PyObject_CallNoArgs(void* function);
extern void Py_DecRef(void* object);

static volatile long count;
static unsigned long skip_from, skip_to;

static void step(int number, siginfo_t* info, void* context) {
  (void)number;
  (void)info;
  unsigned long at = (unsigned long)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
  count += at < skip_from || at >= skip_to;
}

// Returns the number of instructions that do not lie between the two addresses, or -1 if the
// function raised.
long ae_count_instructions(void* function, unsigned long from, unsigned long to) {
  struct sigaction counting = {.sa_sigaction = step, .sa_flags = SA_SIGINFO}, before;
  sigaction(SIGTRAP, &counting, &before);
  count = 0;
  skip_from = from;
  skip_to = to;
  // With the trap flag, the processor raises the signal after each instruction of this thread. The
  // red zone below the stack's pointer is not ours to write to.
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp\n pushfq\n orq $0x100, (%%rsp)\n popfq\n lea 128(%%rsp), %%rsp"
      ::: "memory", "cc");
  void* result = PyObject_CallNoArgs(function);
  __asm__ volatile(
      "lea -128(%%rsp), %%rsp\n pushfq\n andq $~0x100, (%%rsp)\n popfq\n lea 128(%%rsp), %%rsp"
      ::: "memory", "cc");
  long found = count;
  sigaction(SIGTRAP, &before, NULL);
  if (result == NULL) {
    return -1;
  }
  Py_DecRef(result);
  return found;
}
