#include "volley/base/fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <string>
#include <system_error>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; the headers of Debian 12 lack it.
#endif

namespace volley {
namespace {

/// mmap() at a multiple of a huge page when the mapping is at least that long: only whole, aligned
/// huge pages can be backed by one. nullptr with errno set when there is no memory.
void* map_aligned(size_t bytes, int flags, int fd) {
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  if (bytes < kHugePageBytes) {
    void* base = ::mmap(nullptr, bytes, kAccess, flags, fd, 0);
    return base == MAP_FAILED ? nullptr : base;
  }
  // Addresses for one huge page more than needed, of which the aligned part is then mapped.
  const size_t reserved = bytes + kHugePageBytes;
  void* reservation =
      ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reservation == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(reservation);
  const size_t misalignment = reinterpret_cast<uintptr_t>(begin) % kHugePageBytes;
  const size_t head = (kHugePageBytes - misalignment) % kHugePageBytes;
  void* base = ::mmap(begin + head, bytes, kAccess, flags | MAP_FIXED, fd, 0);
  if (base == MAP_FAILED) {
    const int error = errno;
    ::munmap(reservation, reserved);
    errno = error;
    return nullptr;
  }
  if (head > 0) ::munmap(begin, head);
  // munmap() takes whole pages, and the mapping ends with its last page.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t end = head + (bytes + page - 1) / page * page;
  if (end < reserved) ::munmap(begin + end, reserved - end);
  return base;
}

}  // namespace

std::string errno_text(int error) {
  return std::generic_category().message(error);
}

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    reset();
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

void Mapping::reset() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
  bytes_ = {};
}

Result<Mapping> Mapping::map_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    return make_status(error == ENOENT ? StatusCode::kNotFound : StatusCode::kInvalidArgument,
                       "{}: {}", path, errno_text(error));
  }
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return invalid_argument("{}: {}", path, errno_text(errno));
  if (!S_ISREG(info.st_mode)) return invalid_argument("{}: not a regular file", path);
  if (info.st_size == 0) return invalid_argument("{}: the file is empty", path);
  const auto size = static_cast<size_t>(info.st_size);
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED)
    return resource_exhausted("{}: mmap of {} bytes: {}", path, size, errno_text(errno));
  return Mapping({static_cast<std::byte*>(base), size});
}

Result<Mapping> Mapping::map_shared(int fd, size_t bytes) {
  void* base = map_aligned(bytes, MAP_SHARED, fd);
  if (base == nullptr)
    return resource_exhausted("mmap of {} shared bytes: {}", bytes, errno_text(errno));
  return Mapping({static_cast<std::byte*>(base), bytes});
}

Result<Mapping> Mapping::allocate(size_t bytes) {
  if (bytes == 0) return Mapping();
  void* base = map_aligned(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (base == nullptr)
    return resource_exhausted("allocation of {} bytes: {}", bytes, errno_text(errno));
  // A hint: refused where the kernel has no huge pages.
  if (bytes >= kHugePageBytes) ::madvise(base, bytes, MADV_HUGEPAGE);
  return Mapping({static_cast<std::byte*>(base), bytes});
}

void Mapping::collapse_to_huge_pages() const {
  if (bytes_.size() < kHugePageBytes) return;
  ::madvise(bytes_.data(), bytes_.size(), MADV_HUGEPAGE);
  ::madvise(bytes_.data(), bytes_.size() / kHugePageBytes * kHugePageBytes, MADV_COLLAPSE);
}

void Mapping::drop_resident(size_t offset, size_t length) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + length) / page * page;
  if (begin < end) ::madvise(bytes_.data() + begin, end - begin, MADV_DONTNEED);
}

MemoryUse memory_use() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  MemoryUse use;
  std::string line;
  while (std::getline(rollup, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, colon);
    const auto bytes = [&] { return std::strtoull(line.c_str() + colon + 1, nullptr, 10) * 1024; };
    if (key == "Rss") use.resident_bytes = bytes();
    if (key == "AnonHugePages" || key == "ShmemPmdMapped") use.huge_bytes += bytes();
  }
  return use;
}

}  // namespace volley
