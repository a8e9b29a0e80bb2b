#include "volley/base/fd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace volley {

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
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED)
    return resource_exhausted("mmap of {} shared bytes: {}", bytes, errno_text(errno));
  return Mapping({static_cast<std::byte*>(base), bytes});
}

Result<Mapping> Mapping::allocate(size_t bytes) {
  if (bytes == 0) return Mapping();
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    return resource_exhausted("allocation of {} bytes: {}", bytes, errno_text(errno));
  ::madvise(base, bytes, MADV_HUGEPAGE);  // A hint: refused where the kernel has no huge pages.
  return Mapping({static_cast<std::byte*>(base), bytes});
}

void Mapping::drop_resident(size_t offset, size_t length) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + length) / page * page;
  if (begin < end) ::madvise(bytes_.data() + begin, end - begin, MADV_DONTNEED);
}

}  // namespace volley
