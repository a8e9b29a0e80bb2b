#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "volley/base/status.h"

namespace volley {

/// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

/// The transparent huge page of x86-64, and of AArch64 with pages of 4 KiB.
inline constexpr size_t kHugePageBytes = size_t{2} << 20;

/// Owns a memory mapping.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { reset(); }

  /// Maps a whole file read-only. Errors: kNotFound, kInvalidArgument (not a regular file, empty).
  static Result<Mapping> map_file(const std::string& path);
  /// Maps `bytes` of `fd` shared and writable; aligned as allocate() does. Errors:
  /// kResourceExhausted.
  static Result<Mapping> map_shared(int fd, size_t bytes);
  /// Anonymous zeroed memory, page aligned. From kHugePageBytes on it is aligned to huge pages, and
  /// they are asked for; what the kernel gives shows in memory_use(). Errors: kResourceExhausted.
  static Result<Mapping> allocate(size_t bytes);

  std::span<std::byte> bytes() const { return bytes_; }
  /// Asks the kernel to put huge pages in place of the small ones that are resident by now: for
  /// shared memory, where the first touch may have got small ones. A hint: what cannot be had is
  /// left as it is. Content and addresses stay.
  void collapse_to_huge_pages() const;
  /// Lets the kernel drop the resident pages that lie wholly inside [offset, offset + length).
  /// On a file mapping they are read again when touched; on anonymous memory the content is lost.
  void drop_resident(size_t offset, size_t length) const;

 private:
  explicit Mapping(std::span<std::byte> bytes) : bytes_(bytes) {}
  void reset();
  std::span<std::byte> bytes_;
};

/// Memory of this process that is in use, and the part of it that huge pages back. Walks all page
/// tables, milliseconds for tens of gigabytes: not for the step path. Zeros where /proc has no
/// smaps_rollup.
struct MemoryUse {
  size_t resident_bytes = 0;
  size_t huge_bytes = 0;
};
MemoryUse memory_use();

/// "No such file or directory" for an errno value; thread-safe.
std::string errno_text(int error);

}  // namespace volley
