#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/types.h"
#include "volley/base/fd.h"
#include "volley/base/status.h"

namespace volley::model {

inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;  ///< The format's own limit.
inline constexpr size_t kTensorRankMax = 8;

/// One tensor of a safetensors file.
struct TensorInfo {
  std::string dtype;            ///< As the file says it: "BF16".
  std::vector<uint64_t> shape;  ///< Outermost first.
  uint64_t begin = 0;           ///< Bytes from the start of the file.
  uint64_t end = 0;

  uint64_t element_count() const;
};

/// The checked header of one file.
using TensorTable = std::map<std::string, TensorInfo, std::less<>>;

/// Reads the header of a file: 8 bytes little-endian length, then JSON, then the data. `file` is
/// the whole file, of which only the header is touched. As strict as the format: no duplicate name,
/// every tensor has exactly dtype, shape and data_offsets, its bytes are its shape times its
/// element size, and the tensors cover the data without overlap, hole or rest. A dtype that is not
/// known is an error only when the tensor is asked for; only its size cannot be checked. Errors:
/// kInvalidArgument, naming file, tensor, field and value.
Result<TensorTable> parse_safetensors_header(std::span<const std::byte> file,
                                             const std::string& origin);

/// Reads model.safetensors.index.json: tensor name to file name. A file name that is not a plain
/// name inside the folder is refused. Errors: kInvalidArgument.
Result<std::map<std::string, std::string>> parse_safetensors_index(std::string_view text,
                                                                   const std::string& origin);

/// Nothing for a dtype that cannot be used as weights.
std::optional<kernels::SourceDType> source_dtype(std::string_view dtype);
size_t source_dtype_bytes(kernels::SourceDType dtype);

/// One memory-mapped file. The file must not shrink while it is open: reading behind its end would
/// end the process with SIGBUS, as with any mapped file.
class SafetensorsFile {
 public:
  /// Errors: kNotFound, kInvalidArgument.
  static Result<SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return path_; }
  const TensorTable& tensors() const { return tensors_; }
  std::span<const std::byte> bytes() const { return mapping_.bytes(); }
  uint64_t data_begin() const { return data_begin_; }
  /// Gives back the resident pages of bytes [begin, end) of the file and the few around them that
  /// the kernel maps along with a fault. They are read again when touched.
  void drop_resident(uint64_t begin, uint64_t end) const;

 private:
  std::string path_;
  Mapping mapping_;
  TensorTable tensors_;
  uint64_t data_begin_ = 0;
};

/// All tensors of a checkpoint folder: `model.safetensors`, or else the files that
/// `model.safetensors.index.json` lists. Tensors that the index does not list do not exist.
class SafetensorsFolder {
 public:
  struct Tensor {
    const SafetensorsFile* file;
    const TensorInfo* info;
  };

  /// Errors: kNotFound (no weights, or a file that the index lists is missing), kInvalidArgument.
  static Result<SafetensorsFolder> open(const std::string& folder);

  /// In ascending order of their file names.
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  /// Errors: kNotFound.
  Result<Tensor> find(const std::string& name) const;

 private:
  static Result<SafetensorsFolder> open_sharded(const std::string& folder);
  const SafetensorsFile* add(SafetensorsFile file);

  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace volley::model
