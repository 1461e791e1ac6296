// A chat at a terminal or through a pipe: a line is a message, a line that begins with / a command.
#pragma once

#include <signal.h>

#include <cstdio>

#include "infer/chat.h"

namespace sinklora {

// While it lives, Ctrl-C (SIGINT) is noted and does not end the program.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static const volatile std::sig_atomic_t* flag();  // not 0: it came
  static void clear();

 private:
  struct sigaction before_;
};

// Reads from the descriptor `input` until its end (Ctrl-D) or /quit. Replies go to `replies`, everything else
// to `notes`. Where `input` is no terminal there is no prompt, and the first error is thrown.
void run_chat(Chat& chat, int input, std::FILE* replies, std::FILE* notes);

}  // namespace sinklora
