// Runs code in a process of its own: what reads files of strangers, so that a crash in it is an answer and not
// our end, and what starts threads that this process must not have.
#pragma once

#include <functional>
#include <string>

namespace sinklora {

struct ChildResult {
  bool ok = false;
  std::string text;  // what `work` returned, or what it threw, or how it died
};

// Forks, calls `work` in the child and waits. Call it while no other thread holds a lock that `work` needs.
ChildResult run_in_child(const std::function<std::string()>& work);

}  // namespace sinklora
