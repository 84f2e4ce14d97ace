// The part of a thread's work that other threads may claim. Separate from shares.h, because kernels compiled
// for one instruction set include it: it must not pull in functions of the standard library.
#pragma once
#include <atomic>

namespace edged {

// The end of a thread's part of a phase, claimed unit by unit: by the thread itself from the front, by others
// from the back.
struct Reserve {
  std::atomic<int> claimed{0};  // units, also of claims that came too late: may exceed the number of units
  std::atomic<int> others{0};   // of these, those that other threads got
  int own = 0;                  // and those that the thread itself got, which only it reads
};

}  // namespace edged
