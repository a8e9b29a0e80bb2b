#include "safetensors.h"

#include <algorithm>

#include "volley/config/json_reader.h"

namespace volley::model {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
// A tensor costs about nine values, so this leaves room for 200,000 tensors in a file.
constexpr config::JsonLimits kHeaderLimits{kSafetensorsHeaderBytesMax, 3, 2'000'000};
constexpr config::JsonLimits kIndexLimits{64u << 20, 8, 2'000'000};
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
// The kernel maps up to this much around a page fault (fault_around_bytes, by default 64 KiB).
constexpr uint64_t kFaultAroundBytes = 128u << 10;

struct DTypeSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr DTypeSize kDTypeSizes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
    {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8},
};

/// The bytes of one element; nothing when the dtype is not known.
std::optional<uint64_t> element_bytes(std::string_view dtype) {
  for (const DTypeSize& known : kDTypeSizes) {
    if (known.name == dtype) return known.bytes;
  }
  return std::nullopt;
}

/// Reads one entry of the header; offsets are still relative to the data.
class TensorEntry {
 public:
  TensorEntry(const json& entry, std::string place) : entry_(entry), place_(std::move(place)) {}

  Result<TensorInfo> read(uint64_t data_bytes) const {
    if (!entry_.is_object()) return bad("is {}, it must be an object", config::shown(entry_));
    for (const auto& [key, value] : entry_.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        return bad("has an unknown field {}", config::in_quotes(key));
      }
    }
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
      if (!entry_.contains(key)) return bad("has no field \"{}\"", key);
    }
    TensorInfo info;
    const json& dtype = entry_["dtype"];
    if (!dtype.is_string()) return bad("dtype is {}, it must be a string", config::shown(dtype));
    info.dtype = dtype.get<std::string>();
    VOLLEY_RETURN_IF_ERROR(read_shape(info));
    VOLLEY_RETURN_IF_ERROR(read_offsets(info, data_bytes));
    return info;
  }

 private:
  template <class... Args>
  Status bad(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument("{} {}", place_, fmt::format(format, std::forward<Args>(args)...));
  }

  Status read_shape(TensorInfo& info) const {
    const json& shape = entry_["shape"];
    if (!shape.is_array() || shape.size() > kTensorRankMax) {
      return bad("shape is {}, it must be an array of at most {} dimensions", config::shown(shape),
                 kTensorRankMax);
    }
    uint64_t elements = 1;
    for (const json& dimension : shape) {
      if (!dimension.is_number_unsigned()) {
        return bad("shape is {}, every dimension must be an integer of at least 0",
                   config::shown(shape));
      }
      info.shape.push_back(dimension.get<uint64_t>());
      if (__builtin_mul_overflow(elements, info.shape.back(), &elements)) {
        return bad("shape is {}, more elements than 64 bits can count", config::shown(shape));
      }
    }
    return ok_status();
  }

  Status read_offsets(TensorInfo& info, uint64_t data_bytes) const {
    const json& offsets = entry_["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      return bad("data_offsets is {}, it must be [begin, end]", config::shown(offsets));
    }
    info.begin = offsets[0].get<uint64_t>();
    info.end = offsets[1].get<uint64_t>();
    if (info.begin > info.end || info.end > data_bytes) {
      return bad("data_offsets is {}, begin <= end <= {} (the bytes of data) must hold",
                 config::shown(offsets), data_bytes);
    }
    const std::optional<uint64_t> size = element_bytes(info.dtype);
    if (!size) return ok_status();
    uint64_t expected = 0;
    if (__builtin_mul_overflow(info.element_count(), *size, &expected) ||
        expected != info.end - info.begin) {
      return bad("data_offsets is {}, {} bytes; dtype {} and shape {} need {} elements of {} bytes",
                 config::shown(offsets), info.end - info.begin, info.dtype,
                 config::shown(entry_["shape"]), info.element_count(), *size);
    }
    return ok_status();
  }

  const json& entry_;
  const std::string place_;
};

Status check_metadata(const json& metadata, const std::string& origin) {
  const bool valid =
      metadata.is_object() &&
      std::all_of(metadata.begin(), metadata.end(), [](const json& v) { return v.is_string(); });
  if (valid) return ok_status();
  return invalid_argument("{}: __metadata__ is {}, it must be an object of strings", origin,
                          config::shown(metadata));
}

/// The tensors must follow each other and fill the data.
Status check_coverage(const TensorTable& tensors, uint64_t data_bytes, const std::string& origin) {
  std::vector<const TensorTable::value_type*> order;
  order.reserve(tensors.size());
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t covered = 0;
  for (const auto* entry : order) {
    if (entry->second.begin != covered) {
      return invalid_argument("{}: tensor {}: data_offsets begins at {}, which {} {}", origin,
                              config::in_quotes(entry->first), entry->second.begin,
                              entry->second.begin < covered ? "overlaps another tensor that ends at"
                                                            : "leaves a hole after",
                              covered);
    }
    covered = entry->second.end;
  }
  if (covered != data_bytes) {
    return invalid_argument("{}: the tensors end at byte {} of {} bytes of data", origin, covered,
                            data_bytes);
  }
  return ok_status();
}

/// Where the data begins, after the length has been checked against the file.
Result<uint64_t> read_data_begin(std::span<const std::byte> file, const std::string& origin) {
  if (file.size() < kLengthBytes) {
    return invalid_argument("{}: {} bytes, a safetensors file has at least {}", origin, file.size(),
                            kLengthBytes);
  }
  uint64_t header_bytes = 0;
  for (size_t i = kLengthBytes; i-- > 0;) {
    header_bytes = header_bytes << 8 | std::to_integer<uint64_t>(file[i]);
  }
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return invalid_argument("{}: the header length is {}, at most {} is allowed", origin,
                            header_bytes, kSafetensorsHeaderBytesMax);
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return invalid_argument("{}: the header length is {}, but the file has {} bytes", origin,
                            header_bytes, file.size());
  }
  return kLengthBytes + header_bytes;
}

Status check_file_name(const std::string& tensor, const json& file, const std::string& origin) {
  if (file.is_string()) {
    const std::string& name = file.get_ref<const std::string&>();
    const bool plain = !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
                       name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
    if (plain) return ok_status();
  }
  return invalid_argument(
      "{}: weight_map: tensor {} is said to be in {}, which is no file name inside "
      "the folder",
      origin, config::in_quotes(tensor), config::shown(file));
}

}  // namespace

uint64_t TensorInfo::element_count() const {
  uint64_t count = 1;
  for (uint64_t dimension : shape) count *= dimension;
  return count;
}

std::optional<kernels::SourceDType> source_dtype(std::string_view dtype) {
  if (dtype == "BF16") return kernels::SourceDType::kBf16;
  if (dtype == "F16") return kernels::SourceDType::kF16;
  if (dtype == "F32") return kernels::SourceDType::kF32;
  return std::nullopt;
}

size_t source_dtype_bytes(kernels::SourceDType dtype) {
  return dtype == kernels::SourceDType::kF32 ? 4 : 2;
}

Result<TensorTable> parse_safetensors_header(std::span<const std::byte> file,
                                             const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const uint64_t data_begin, read_data_begin(file, origin));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                              data_begin - kLengthBytes);
  VOLLEY_ASSIGN_OR_RETURN(const json header,
                          config::parse_json_object(text, kHeaderLimits, origin + ": header"));
  const uint64_t data_bytes = file.size() - data_begin;
  TensorTable tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      VOLLEY_RETURN_IF_ERROR(check_metadata(entry, origin));
      continue;
    }
    const TensorEntry reader(entry, fmt::format("{}: tensor {}:", origin, config::in_quotes(name)));
    VOLLEY_ASSIGN_OR_RETURN(TensorInfo info, reader.read(data_bytes));
    tensors.emplace(name, std::move(info));
  }
  VOLLEY_RETURN_IF_ERROR(check_coverage(tensors, data_bytes, origin));
  for (auto& [name, info] : tensors) {
    info.begin += data_begin;
    info.end += data_begin;
  }
  return tensors;
}

Result<std::map<std::string, std::string>> parse_safetensors_index(std::string_view text,
                                                                   const std::string& origin) {
  VOLLEY_ASSIGN_OR_RETURN(const json index, config::parse_json_object(text, kIndexLimits, origin));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return invalid_argument("{}: weight_map is {}, it must be an object", origin,
                            weight_map == index.end() ? "missing" : config::shown(*weight_map));
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : weight_map->items()) {
    VOLLEY_RETURN_IF_ERROR(check_file_name(tensor, file, origin));
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  SafetensorsFile file;
  file.path_ = path;
  VOLLEY_ASSIGN_OR_RETURN(file.mapping_, Mapping::map_file(path));
  VOLLEY_ASSIGN_OR_RETURN(file.data_begin_, read_data_begin(file.bytes(), path));
  VOLLEY_ASSIGN_OR_RETURN(file.tensors_, parse_safetensors_header(file.bytes(), path));
  file.drop_resident(0, file.data_begin_);
  return file;
}

void SafetensorsFile::drop_resident(uint64_t begin, uint64_t end) const {
  const uint64_t first = begin / kFaultAroundBytes * kFaultAroundBytes;
  const uint64_t last = std::min<uint64_t>(bytes().size(), end + kFaultAroundBytes);
  mapping_.drop_resident(first, last - first);
}

Result<SafetensorsFolder> SafetensorsFolder::open(const std::string& folder) {
  Result<SafetensorsFile> single = SafetensorsFile::open(folder + "/" + kSingleFile);
  if (single.status().code() == StatusCode::kNotFound) return open_sharded(folder);
  if (!single.ok()) return single.status();
  SafetensorsFolder result;
  result.folder_ = folder;
  const SafetensorsFile* file = result.add(std::move(single).value());
  for (const auto& [name, info] : file->tensors()) result.tensors_[name] = {file, &info};
  return result;
}

Result<SafetensorsFolder> SafetensorsFolder::open_sharded(const std::string& folder) {
  const std::string path = folder + "/" + kIndexFile;
  const Result<Mapping> index = Mapping::map_file(path);
  if (index.status().code() == StatusCode::kNotFound) {
    return not_found("{}: neither {} nor {} is there", folder, kSingleFile, kIndexFile);
  }
  if (!index.ok()) return index.status();
  const std::string_view text(reinterpret_cast<const char*>(index->bytes().data()),
                              index->bytes().size());
  VOLLEY_ASSIGN_OR_RETURN(const auto weight_map, parse_safetensors_index(text, path));

  SafetensorsFolder result;
  result.folder_ = folder;
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, name] : weight_map) opened[name] = nullptr;
  for (auto& [name, file] : opened) {
    Result<SafetensorsFile> shard = SafetensorsFile::open(folder + "/" + name);
    if (!shard.ok()) return annotate(shard.status(), path + ": weight_map");
    file = result.add(std::move(shard).value());
  }
  for (const auto& [tensor, name] : weight_map) {
    const SafetensorsFile* file = opened[name];
    const auto info = file->tensors().find(tensor);
    if (info == file->tensors().end()) {
      return invalid_argument("{}: weight_map: tensor {} is said to be in {}, but is not there",
                              path, config::in_quotes(tensor), config::in_quotes(name));
    }
    result.tensors_[tensor] = {file, &info->second};
  }
  return result;
}

const SafetensorsFile* SafetensorsFolder::add(SafetensorsFile file) {
  files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
  return files_.back().get();
}

Result<SafetensorsFolder::Tensor> SafetensorsFolder::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  return not_found("{}: no tensor {} in {} safetensors file{}", folder_, config::in_quotes(name),
                   files_.size(), files_.size() == 1 ? "" : "s");
}

}  // namespace volley::model
