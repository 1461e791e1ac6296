// A file descriptor and its end.
#pragma once

#include <unistd.h>

#include <utility>

namespace sinklora {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      number_ = other.release();
    }
    return *this;
  }
  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  void reset() {
    if (number_ >= 0) ::close(release());
  }
  int release() { return std::exchange(number_, -1); }  // who calls this closes it

 private:
  int number_ = -1;
};

}  // namespace sinklora
