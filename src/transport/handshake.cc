#include "handshake.h"

#include <algorithm>
#include <cstring>

namespace volley::transport {
namespace {

constexpr uint32_t kRowsMax = 1u << 20;
constexpr uint32_t kRowBytesMax = 1u << 20;

template <size_t size>
void put_text(char (&out)[size], const std::string& text) {
  const size_t length = std::min(text.size(), size - 1);
  std::memcpy(out, text.data(), length);
  out[length] = 0;
}

template <size_t size>
bool ends_with_zero(const char (&text)[size]) {
  return std::memchr(text, 0, size) != nullptr;
}

// The time must not tell how many leading bytes of a guess were right.
bool keys_equal(const uint8_t* a, const uint8_t* b, size_t bytes) {
  volatile uint8_t difference = 0;
  for (size_t i = 0; i < bytes; ++i) difference = difference | (a[i] ^ b[i]);
  return difference == 0;
}

Status check_layout(const protocol::SlotLayout& layout, const char* name) {
  if (layout.rows_max == 0 || layout.rows_max > kRowsMax) {
    return invalid_argument("geometry.{}.rows_max is {}, allowed: 1 to {}", name, layout.rows_max,
                            kRowsMax);
  }
  if (layout.entries_max > kRowsMax) {
    return invalid_argument("geometry.{}.entries_max is {}, allowed: 0 to {}", name,
                            layout.entries_max, kRowsMax);
  }
  if (layout.row_bytes == 0 || layout.row_bytes > kRowBytesMax || layout.row_bytes % 2 != 0) {
    return invalid_argument("geometry.{}.row_bytes is {}, allowed: even, 2 to {}", name,
                            layout.row_bytes, kRowBytesMax);
  }
  return ok_status();
}

Status check_same(const char* field, uint64_t theirs, uint64_t ours) {
  if (theirs == ours) return ok_status();
  return failed_precondition("{} is {} at the connecting node and {} at the listener", field,
                             theirs, ours);
}

const char* combine_name(uint32_t weight_bytes) {
  return weight_bytes == 0                        ? "exact"
         : weight_bytes == protocol::kWeightBytes ? "pre_reduce"
                                                  : "unknown";
}

// Before the layouts, which follow from it: the error must name the cause.
Status check_same_combine(uint32_t theirs, uint32_t ours) {
  if (theirs == ours) return ok_status();
  return failed_precondition(
      "combine is {} ({} bytes per weight) at the connecting node and {} ({}) at the listener",
      combine_name(theirs), theirs, combine_name(ours), ours);
}

Status check_same_layout(const char* name, const uint32_t (&theirs)[3],
                         const protocol::SlotLayout& ours) {
  VOLLEY_RETURN_IF_ERROR(
      check_same(fmt::format("{}.rows_max", name).c_str(), theirs[0], ours.rows_max));
  VOLLEY_RETURN_IF_ERROR(
      check_same(fmt::format("{}.entries_max", name).c_str(), theirs[1], ours.entries_max));
  return check_same(fmt::format("{}.row_bytes", name).c_str(), theirs[2], ours.row_bytes);
}

}  // namespace

Status check_options(const FabricOptions& options) {
  const protocol::LinkGeometry& geometry = options.geometry;
  if (geometry.micro_batches == 0 || geometry.micro_batches > protocol::kMicroBatchesMax) {
    return invalid_argument("geometry.micro_batches is {}, allowed: 1 to {}",
                            geometry.micro_batches, protocol::kMicroBatchesMax);
  }
  VOLLEY_RETURN_IF_ERROR(check_layout(geometry.dispatch, "dispatch"));
  VOLLEY_RETURN_IF_ERROR(check_layout(geometry.answer, "answer"));
  if (geometry.answer.entries_max != 0) {
    return invalid_argument("geometry.answer.entries_max is {}, allowed: 0",
                            geometry.answer.entries_max);
  }
  if (geometry.dispatch.weight_bytes != 0 &&
      geometry.dispatch.weight_bytes != protocol::kWeightBytes) {
    return invalid_argument("geometry.dispatch.weight_bytes is {}, allowed: 0 or {}",
                            geometry.dispatch.weight_bytes, protocol::kWeightBytes);
  }
  if (geometry.answer.weight_bytes != 0) {
    return invalid_argument("geometry.answer.weight_bytes is {}, allowed: 0",
                            geometry.answer.weight_bytes);
  }
  if (geometry.answer.rows_max != geometry.answer_rows_max()) {
    return invalid_argument(
        "geometry.answer.rows_max is {}, allowed: dispatch.{}, {}", geometry.answer.rows_max,
        geometry.combine() == protocol::Combine::kPreReduce ? "rows_max" : "entries_max",
        geometry.answer_rows_max());
  }
  if (options.links_max == 0 || options.links_max > 4096) {
    return invalid_argument("links_max is {}, allowed: 1 to 4096", options.links_max);
  }
  if (options.layers == 0) return invalid_argument("layers is 0, allowed: 1 or more");
  if (options.self.name.empty() || options.self.name.size() >= sizeof(Hello::name) ||
      options.self.name.find('\0') != std::string::npos) {
    return invalid_argument("self.name '{}' has {} bytes, allowed: 1 to {}, none of them zero",
                            options.self.name, options.self.name.size(), sizeof(Hello::name) - 1);
  }
  if (options.connect_timeout <= 0) {
    return invalid_argument("connect_timeout is {} ns, allowed: more than 0",
                            options.connect_timeout);
  }
  return ok_status();
}

Hello make_hello(const FabricOptions& self, const LinkKey& key) {
  const protocol::LinkGeometry& geometry = self.geometry;
  Hello hello;
  hello.incarnation = self.self.incarnation.value;
  hello.micro_batches = geometry.micro_batches;
  hello.dispatch[0] = geometry.dispatch.rows_max;
  hello.dispatch[1] = geometry.dispatch.entries_max;
  hello.dispatch[2] = geometry.dispatch.row_bytes;
  hello.answer[0] = geometry.answer.rows_max;
  hello.answer[1] = geometry.answer.entries_max;
  hello.answer[2] = geometry.answer.row_bytes;
  hello.layers = self.layers;
  hello.dtype = self.dtype;
  hello.dispatch_dtype = dispatch_dtype_of(self);
  hello.weight_bytes = geometry.dispatch.weight_bytes;
  std::copy(key.begin(), key.end(), hello.key);
  put_text(hello.name, self.self.name);
  return hello;
}

Status check_hello(const Hello& hello, const FabricOptions& self) {
  if (hello.magic != kHelloMagic) return data_loss("hello.magic is {:#010x}", hello.magic);
  if (hello.wire_version != protocol::kWireVersion) {
    return failed_precondition("wire_version is {} at the connecting node and {} at the listener",
                               hello.wire_version, protocol::kWireVersion);
  }
  if (hello.bytes != sizeof hello) {
    return data_loss("hello.bytes is {}, allowed: {}", hello.bytes, sizeof hello);
  }
  if (!keys_equal(hello.key, self.key.data(), self.key.size())) {
    return make_status(StatusCode::kUnauthenticated, "the key is wrong");
  }
  if (!ends_with_zero(hello.name) || hello.name[0] == 0) {
    return data_loss("hello.name is empty or does not end");
  }
  VOLLEY_RETURN_IF_ERROR(
      check_same("micro_batches", hello.micro_batches, self.geometry.micro_batches));
  VOLLEY_RETURN_IF_ERROR(
      check_same_combine(hello.weight_bytes, self.geometry.dispatch.weight_bytes));
  VOLLEY_RETURN_IF_ERROR(check_same_layout("dispatch", hello.dispatch, self.geometry.dispatch));
  VOLLEY_RETURN_IF_ERROR(check_same_layout("answer", hello.answer, self.geometry.answer));
  VOLLEY_RETURN_IF_ERROR(check_same("layers", hello.layers, self.layers));
  VOLLEY_RETURN_IF_ERROR(check_same("dtype", hello.dtype, self.dtype));
  return check_same("dispatch_dtype", hello.dispatch_dtype, dispatch_dtype_of(self));
}

Welcome make_welcome(const FabricOptions& self, uint32_t wire_link) {
  Welcome welcome;
  welcome.incarnation = self.self.incarnation.value;
  welcome.wire_link = wire_link;
  put_text(welcome.name, self.self.name);
  return welcome;
}

Welcome make_refusal(const FabricOptions& self, const Status& why) {
  Welcome welcome = make_welcome(self, 0);
  welcome.code = static_cast<uint32_t>(why.code());
  put_text(welcome.reason, message_of(why));
  return welcome;
}

Status check_welcome(const Welcome& welcome) {
  if (welcome.magic != kWelcomeMagic) return data_loss("welcome.magic is {:#010x}", welcome.magic);
  if (welcome.wire_version != protocol::kWireVersion) {
    return failed_precondition("wire_version is {} at the listener and {} at the connecting node",
                               welcome.wire_version, protocol::kWireVersion);
  }
  if (welcome.bytes != sizeof welcome) {
    return data_loss("welcome.bytes is {}, allowed: {}", welcome.bytes, sizeof welcome);
  }
  if (!ends_with_zero(welcome.name) || welcome.name[0] == 0 || !ends_with_zero(welcome.reason)) {
    return data_loss("a text of the welcome is empty or does not end");
  }
  if (welcome.code == 0) return ok_status();
  const bool known = welcome.code <= static_cast<uint32_t>(StatusCode::kUnauthenticated);
  return make_status(known ? static_cast<StatusCode>(welcome.code) : StatusCode::kUnknown,
                     "{} refused the link: {}", welcome.name, welcome.reason);
}

NodeIdentity identity_of(const Hello& hello) {
  return {.name = hello.name, .incarnation = Incarnation{hello.incarnation}};
}
NodeIdentity identity_of(const Welcome& welcome) {
  return {.name = welcome.name, .incarnation = Incarnation{welcome.incarnation}};
}

protocol::Expectation expectation_of(const FabricOptions& self, bool connector,
                                     Incarnation peer_incarnation, uint32_t wire_link) {
  return {.kind = connector ? protocol::MessageKind::kAnswer : protocol::MessageKind::kDispatch,
          .incarnation = peer_incarnation.value,
          .link = wire_link,
          .slot = 0,
          .layers = self.layers,
          .experts = 0,
          .dtype = connector ? self.dtype : dispatch_dtype_of(self),
          .layout = connector ? self.geometry.answer : self.geometry.dispatch,
          .micro_batches = self.geometry.micro_batches};
}

}  // namespace volley::transport
