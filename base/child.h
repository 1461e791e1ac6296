// Runs code that reads files of strangers in a process of its own, so that a crash in it is an answer and not
// our end.
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
