// Which program made a result.
#pragma once

namespace sinklora {

// The commit that was built, with "-dirty" behind it where files differed from it; "unknown" outside of git.
const char* built_commit();

}  // namespace sinklora
