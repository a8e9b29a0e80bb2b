#include "volley/control/term_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <limits>
#include <optional>

#include "volley/base/fd.h"

namespace volley::control {
namespace {

uint32_t seconds_since_epoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

Result<std::optional<uint32_t>> read_term(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    if (errno == ENOENT) return std::optional<uint32_t>();
    return invalid_argument("{}: {}", path, errno_text(errno));
  }
  char text[32];
  const ssize_t length = read(file.get(), text, sizeof(text));
  if (length < 0) return invalid_argument("{}: {}", path, errno_text(errno));
  uint32_t term = 0;
  const auto parsed = std::from_chars(text, text + length, term);
  if (parsed.ec != std::errc() || parsed.ptr + 1 != text + length || *parsed.ptr != '\n' ||
      term == std::numeric_limits<uint32_t>::max()) {
    return data_loss("{}: '{}' is not a term (a number in [0, 4294967294] and a newline)", path,
                     std::string(text, static_cast<size_t>(length)));
  }
  return std::optional<uint32_t>(term);
}

// The rename makes the change atomic; the two fsyncs make it last through a power cut.
Status write_term(const std::string& dir, const std::string& path, uint32_t term) {
  const std::string next_path = path + ".new";
  const UniqueFd file(open(next_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file) return invalid_argument("{}: {}", next_path, errno_text(errno));
  const std::string text = fmt::format("{}\n", term);
  if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      fsync(file.get()) != 0) {
    return invalid_argument("{}: {}", next_path, errno_text(errno));
  }
  if (rename(next_path.c_str(), path.c_str()) != 0) {
    return invalid_argument("{}: {}", path, errno_text(errno));
  }
  const UniqueFd folder(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || fsync(folder.get()) != 0)
    return invalid_argument("{}: {}", dir, errno_text(errno));
  return ok_status();
}

}  // namespace

Result<uint32_t> take_next_term(const std::string& state_dir) {
  if (state_dir.empty()) return seconds_since_epoch();
  std::error_code error;
  std::filesystem::create_directories(state_dir, error);
  if (error) return invalid_argument("state directory {}: {}", state_dir, error.message());
  const std::string path = state_dir + "/term";
  VOLLEY_ASSIGN_OR_RETURN(const std::optional<uint32_t> last, read_term(path));
  const uint32_t term = last.has_value() ? *last + 1 : seconds_since_epoch();
  VOLLEY_RETURN_IF_ERROR(write_term(state_dir, path, term));
  return term;
}

}  // namespace volley::control
