#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "volley/base/status.h"

namespace volley::cli {

/// A file that a command writes its report to, opened before the work starts, so that a path that
/// cannot be written is told at once. An empty path: writes nothing.
class OutputFile {
 public:
  /// Creates the file, or leaves what it holds until write(). Errors: kInvalidArgument naming the path.
  static Result<OutputFile> open(const std::string& path);
  /// Writes `text` and closes the file. Called once. Errors: kResourceExhausted.
  Status write(const std::string& text);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace volley::cli
