#include "output_file.h"

#include <unistd.h>

#include <cerrno>

#include "volley/base/fd.h"

namespace volley::cli {

Result<OutputFile> OutputFile::open(const std::string& path) {
  OutputFile output;
  if (path.empty()) return output;
  output.path_ = path;
  output.file_.reset(std::fopen(path.c_str(), "a"));
  if (!output.file_) return invalid_argument("cannot write {}: {}", path, errno_text(errno));
  return output;
}

Status OutputFile::write(const std::string& text) {
  if (!file_) return ok_status();
  // Only now is an older report gone. A device or a pipe cannot be truncated and need not be.
  [[maybe_unused]] const int truncated = ::ftruncate(::fileno(file_.get()), 0);
  const bool written = std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size();
  if (std::fclose(file_.release()) != 0 || !written) {
    return resource_exhausted("cannot write {}: {}", path_, errno_text(errno));
  }
  return ok_status();
}

}  // namespace volley::cli
