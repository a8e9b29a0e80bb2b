// Checkpoint: a folder whose configuration has been read, its digest, and the source of its
// tensors.

#include <algorithm>
#include <cstring>

#include "dummy_source.h"
#include "safetensors_source.h"
#include "volley/base/digest.h"
#include "volley/model/weights.h"

namespace volley::model {
namespace {

constexpr uint64_t kDigestBytesPerTensor = 4096;
constexpr size_t kConfigBytesMax = 4u << 20;

/// A digest over a sequence of pieces. Each is hashed with its length under the digest so far, so
/// that pieces cannot shift into each other.
class RunningDigest {
 public:
  void add(std::span<const std::byte> bytes) { value_ = digest64(bytes, value_ ^ bytes.size()); }
  void add(const std::string& text) { add(std::as_bytes(std::span(text))); }
  void add(uint64_t number) { add(std::as_bytes(std::span(&number, 1))); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};

Result<std::string> read_text(const std::string& path) {
  VOLLEY_ASSIGN_OR_RETURN(const Mapping file, Mapping::map_file(path));
  if (file.bytes().size() > kConfigBytesMax) {
    return invalid_argument("{}: {} bytes, at most {} are allowed", path, file.bytes().size(),
                            kConfigBytesMax);
  }
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

/// Reads the configuration; starts the digest with it.
Result<Checkpoint> open_config(const std::string& folder, RunningDigest& digest) {
  const std::string path = folder + "/config.json";
  VOLLEY_ASSIGN_OR_RETURN(const std::string config, read_text(path));
  Result<std::string> generation = read_text(folder + "/generation_config.json");
  if (!generation.ok() && generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  const std::string generation_text = generation.ok() ? *generation : "";
  VOLLEY_ASSIGN_OR_RETURN(checkpoint.spec, parse_model_config(config, generation_text, path));
  digest.add(config);
  digest.add(generation_text);
  return checkpoint;
}

void add_file(const SafetensorsFile& file, RunningDigest& digest) {
  digest.add(file.bytes().size());
  digest.add(file.bytes().first(file.data_begin()));
  for (const auto& [name, info] : file.tensors()) {
    const uint64_t length = std::min(info.end - info.begin, kDigestBytesPerTensor);
    digest.add(file.bytes().subspan(info.begin, length));
    file.drop_resident(info.begin, info.begin + length);
  }
  file.drop_resident(0, file.data_begin());
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& folder) {
  RunningDigest digest;
  VOLLEY_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_config(folder, digest));
  VOLLEY_ASSIGN_OR_RETURN(const SafetensorsFolder tensors, SafetensorsFolder::open(folder));
  for (const auto& file : tensors.files()) add_file(*file, digest);
  checkpoint.digest = digest.value();
  return checkpoint;
}

Result<Checkpoint> Checkpoint::open_dummy(const std::string& folder, uint64_t seed) {
  RunningDigest digest;
  VOLLEY_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_config(folder, digest));
  digest.add("dummy");
  digest.add(seed);
  checkpoint.digest = digest.value();
  checkpoint.dummy = true;
  checkpoint.dummy_seed = seed;
  return checkpoint;
}

Result<std::unique_ptr<WeightSource>> Checkpoint::source() const {
  if (dummy) return std::make_unique<DummySource>(spec.names.embedding, dummy_seed);
  VOLLEY_ASSIGN_OR_RETURN(SafetensorsFolder tensors, SafetensorsFolder::open(folder));
  return std::make_unique<SafetensorsSource>(std::move(tensors));
}

}  // namespace volley::model
