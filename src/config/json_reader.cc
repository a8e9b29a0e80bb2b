#include "volley/config/json_reader.h"

#include <vector>

namespace volley::config {
namespace {

using nlohmann::json;

constexpr size_t kShownBytesMax = 100;

/// Builds the document from the parser's events, so that limits and duplicate keys stop the parse
/// before memory is spent, which a finished document could not tell.
class DocumentBuilder final : public nlohmann::json_sax<json> {
 public:
  DocumentBuilder(const JsonLimits& limits, const std::string& origin)
      : limits_(limits), origin_(origin) {}

  bool null() override { return add(json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return add(json(value)) != nullptr; }
  bool number_integer(int64_t value) override { return add(json(value)) != nullptr; }
  bool number_unsigned(uint64_t value) override { return add(json(value)) != nullptr; }
  bool number_float(double value, const std::string&) override {
    return add(json(value)) != nullptr;
  }
  bool string(std::string& value) override { return add(json(std::move(value))) != nullptr; }
  bool binary(json::binary_t&) override { return fail("binary values are not JSON"); }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    const auto [slot, inserted] = open_.back()->get_ref<json::object_t&>().try_emplace(name);
    if (!inserted) return fail(fmt::format("the key {} occurs twice", in_quotes(name)));
    slot_ = &slot->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    return fail(fmt::format("not valid JSON at byte {}: {}", position, error.what()));
  }

  const Status& status() const { return status_; }
  json take() { return std::move(root_); }

 private:
  bool fail(const std::string& why) {
    status_ = invalid_argument("{}: {}", origin_, why);
    return false;
  }

  json* add(json value) {
    if (++values_ > limits_.values_max) {
      fail(fmt::format("more than {} JSON values", limits_.values_max));
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array())
      return &open_.back()->get_ref<json::array_t&>().emplace_back(std::move(value));
    *slot_ = std::move(value);
    return slot_;
  }

  bool open(json container) {
    if (open_.size() == limits_.depth_max) {
      return fail(fmt::format("nested deeper than {} levels", limits_.depth_max));
    }
    json* added = add(std::move(container));
    if (added == nullptr) return false;
    open_.push_back(added);  // Stays valid: a container grows only after its open child is closed.
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  const std::string& origin_;
  json root_;
  std::vector<json*> open_;
  json* slot_ = nullptr;  // Where the value of the key just read goes.
  size_t values_ = 0;
  Status status_;
};

}  // namespace

Result<json> parse_json_object(std::string_view text, const JsonLimits& limits,
                               const std::string& origin) {
  if (text.size() > limits.bytes_max) {
    return invalid_argument("{}: {} bytes of JSON, at most {} are allowed", origin, text.size(),
                            limits.bytes_max);
  }
  DocumentBuilder builder(limits, origin);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return builder.status();
  json document = builder.take();
  if (!document.is_object()) {
    return invalid_argument("{}: the top level is {}, it must be an object", origin,
                            document.type_name());
  }
  return document;
}

std::string in_quotes(std::string_view text) {
  return shown(json(text));
}

std::string shown(const json& value) {
  // `replace`: text cut from a broken file need not be UTF-8, and an error must not fail itself.
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShownBytesMax) text = text.substr(0, kShownBytesMax) + "...";
  return text;
}

}  // namespace volley::config
