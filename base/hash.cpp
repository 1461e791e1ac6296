#include "base/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <memory>
#include <vector>

#include "base/error.h"
#include "base/files.h"

namespace sinklora {
namespace {

// Calls `consume(bytes)` on the file's content, a piece at a time.
template <class Consume>
void for_each_piece(const std::filesystem::path& path, Consume consume) {
  const ReadFile file(path);
  std::vector<std::byte> piece(size_t{1} << 20);
  for (int64_t offset = 0; offset < file.size();) {
    const int64_t got = file.read_some(offset, piece);
    if (got == 0) fail_input("{}: shrank while it was read", path.string());
    consume(std::span<const std::byte>(piece.data(), static_cast<size_t>(got)));
    offset += got;
  }
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1)
      fail_internal("OpenSSL cannot start SHA-256");
  }
  void update(std::span<const std::byte> bytes) {
    if (EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) != 1)
      fail_internal("OpenSSL SHA-256 failed");
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (EVP_DigestFinal_ex(context_.get(), digest, &length) != 1) fail_internal("OpenSSL SHA-256 failed");
    std::string text;
    for (unsigned int i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

uint64_t xxh3_64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string xxh3_128_of_file(const std::filesystem::path& path) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  if (!state) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  for_each_piece(path, [&](auto piece) { XXH3_128bits_update(state.get(), piece.data(), piece.size()); });
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string sha256(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

std::string sha256_of_file(const std::filesystem::path& path) {
  Sha256 hash;
  for_each_piece(path, [&](auto piece) { hash.update(piece); });
  return hash.hex();
}

}  // namespace sinklora
