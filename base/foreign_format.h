// Files that are given where another kind is wanted.
#pragma once

#include <string>
#include <string_view>

namespace sinklora {

// Throws Error(input) naming `source` where a file that begins with `head` is an archive, a table or an index
// that nothing here reads, or Git LFS's pointer to a file. No text, no JSON and hardly any stream of tokens
// begins so.
void refuse_foreign_format(std::string_view head, const std::string& source);

inline constexpr std::string_view kGitLfsPointer = "version https://git-lfs";  // begins so

inline constexpr size_t kForeignFormatBytes = 64;  // of a file's beginning are enough

}  // namespace sinklora
