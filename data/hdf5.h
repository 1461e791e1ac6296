// HDF5 files behind RAII: every return code is checked, the library's own printing is silenced, and its
// reason goes into our message. Only finished files are read, hence without locks, and nothing outside of them: no
// plugin is loaded, no link or external storage followed.
//
// Threads: the library must have been built thread-safe (Debian's is; the constructors check it), so it
// serialises all its calls itself and no lock of ours spans two files. One object here belongs to one thread
// at a time.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace sinklora {

// An HDF5 identifier and the function that closes it.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Hdf5Handle() = default;
  Hdf5Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept;
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept;
  ~Hdf5Handle();
  operator hid_t() const { return id_; }
  herr_t close();  // now, so that an error is seen

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// A dataset of signed integers, read and grown along its first dimension.
class Hdf5Dataset {
 public:
  Hdf5Dataset(Hdf5Handle id, std::string place);

  const std::vector<int64_t>& shape() const { return shape_; }
  const std::string& place() const { return place_; }  // "file: dataset", for messages
  // Entries [first, first + count) of the first dimension; `out` holds exactly these.
  void read(int64_t first, int64_t count, std::span<int32_t> out) const;
  void read(int64_t first, int64_t count, std::span<int64_t> out) const;
  void append(std::span<const int32_t> entry);  // of a dataset made by create_growing

 private:
  template <class Number>
  void read_as(hid_t type, int64_t first, int64_t count, std::span<Number> out) const;
  int64_t entry_size() const;
  Hdf5Handle select(int64_t first, int64_t count) const;

  Hdf5Handle id_;
  std::string place_;
  std::vector<int64_t> shape_;
};

class Hdf5Reader {
 public:
  explicit Hdf5Reader(const std::filesystem::path& path);

  bool has(const std::string& name) const;
  // Checks the rank, that the elements are signed integers of `bytes` bytes, and that a chunk is of sane
  // size.
  Hdf5Dataset open(const std::string& name, int rank, size_t bytes) const;
  // Attributes of the root group; empty when there is none of that name.
  std::optional<int64_t> integer(const std::string& name) const;
  std::optional<std::string> text(const std::string& name) const;  // fixed-length strings only

 private:
  std::filesystem::path path_;
  Hdf5Handle file_;
};

// Builds a file in memory, with checksummed metadata (libver V110) and checksummed chunks (fletcher32), and
// without time stamps: equal content gives equal bytes. In memory because HDF5 1.10 does not survive a full
// disk: its close succeeds although rows are lost, or it crashes. The caller writes the bytes.
class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::filesystem::path& path);  // the path is for messages

  // [0, entry...] of int32, one entry a chunk, to be appended to.
  Hdf5Dataset create_growing(const std::string& name, const std::vector<int64_t>& entry);
  void write(const std::string& name, std::span<const int32_t> values);
  void write(const std::string& name, std::span<const int64_t> values);
  void attribute(const std::string& name, int64_t value);
  void attribute(const std::string& name, const std::string& value);
  std::span<const std::byte> finish();  // the bytes of the file; they live as long as this object

 private:
  void write_as(const std::string& name, hid_t stored, hid_t memory, size_t count, const void* values);
  void write_attribute(const std::string& name, hid_t stored, hid_t memory, const void* value);

  // The library's memory for the file, left to us when it closes the file.
  struct Image {
    std::byte* bytes = nullptr;
    size_t capacity = 0;
    bool closed = false;
    ~Image();
  };
  std::filesystem::path path_;
  std::unique_ptr<Image> image_;
  Hdf5Handle file_;
};

}  // namespace sinklora
