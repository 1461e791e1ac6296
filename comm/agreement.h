// Do all ranks mean the same run? Named fields are compared before step 1 (options, data, vocabulary,
// parameters, versions) and, as a hash of the trainables, every so many steps. The error names the fields
// that differ and the ranks behind each value.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"

namespace sinklora {

struct Field {
  std::string name;
  std::string value;  // any text or bytes; hashes of large things
};

// Every rank calls with its own values; all return, or all throw the same Error(communicator). `what` begins
// the message: "before step 1"; `remedy` ends it.
void agree(Communicator& communicator, const std::vector<Field>& fields, std::string_view what,
           std::string_view remedy = "give all ranks the same");

}  // namespace sinklora
