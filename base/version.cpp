#include "base/version.h"

#include "built_commit.h"  // scripts/write_commit.cmake

namespace sinklora {

const char* built_commit() { return SINKLORA_COMMIT; }

}  // namespace sinklora
