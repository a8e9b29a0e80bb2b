#include "volley/config/text_file.h"

#include <fstream>

namespace volley::config {

Result<std::string> read_text_file(const std::string& file, size_t bytes_max) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) return not_found("{}: cannot be opened", file);
  std::string text(bytes_max + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  // A folder can be opened, but nothing can be read from it.
  if (stream.bad()) return invalid_argument("{}: cannot be read", file);
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > bytes_max) return invalid_argument("{}: larger than {} bytes", file, bytes_max);
  return text;
}

}  // namespace volley::config
