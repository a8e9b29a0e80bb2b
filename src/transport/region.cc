#include "region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace volley::transport {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

// Page faults belong to the start of a link, not to its first messages.
void touch(std::span<const std::byte> bytes) {
  for (size_t i = 0; i < bytes.size(); i += 4096) {
    [[maybe_unused]] const std::byte value = *static_cast<const volatile std::byte*>(&bytes[i]);
  }
}

}  // namespace

Result<std::shared_ptr<Region>> Region::create(const protocol::LinkGeometry& geometry) {
  const size_t bytes = total_bytes(geometry);
  auto region = std::make_shared<Region>();
  region->memory_ = UniqueFd(::memfd_create("volley-link", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!region->memory_) return resource_exhausted("memfd_create: {}", errno_text(errno));
  const int fd = region->memory_.get();
  // posix_fallocate reports a full tmpfs here, where touching would raise SIGBUS.
  if (const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)); error != 0) {
    return resource_exhausted("{} bytes of shared memory for a link: {}", bytes, errno_text(error));
  }
  if (::fcntl(fd, F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0) {
    return resource_exhausted("sealing shared memory: {}", errno_text(errno));
  }
  VOLLEY_ASSIGN_OR_RETURN(region->mapping_, Mapping::map_shared(fd, bytes));
  region->answer_offset_ = kControlBytes + geometry.slot_count() * geometry.dispatch.slot_bytes();
  region->mapping_.collapse_to_huge_pages();  // The allocation above gives small ones.
  touch(region->mapping_.bytes());
  return region;
}

Result<std::shared_ptr<Region>> Region::adopt(UniqueFd memory,
                                              const protocol::LinkGeometry& geometry) {
  const size_t bytes = total_bytes(geometry);
  struct stat info;
  if (::fstat(memory.get(), &info) != 0 || static_cast<size_t>(info.st_size) != bytes) {
    return data_loss("the listener's link memory is not {} bytes long", bytes);
  }
  const int seals = ::fcntl(memory.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return data_loss("the listener's link memory is not sealed against resizing");
  }
  auto region = std::make_shared<Region>();
  VOLLEY_ASSIGN_OR_RETURN(region->mapping_, Mapping::map_shared(memory.get(), bytes));
  region->memory_ = std::move(memory);
  region->answer_offset_ = kControlBytes + geometry.slot_count() * geometry.dispatch.slot_bytes();
  touch(region->mapping_.bytes());
  return region;
}

}  // namespace volley::transport
