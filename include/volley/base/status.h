#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <string>
#include <utility>

namespace volley {

/// Failures are values. The codes are gRPC's, so the edge maps them one to one.
using Status = absl::Status;
template <class T>
using Result = absl::StatusOr<T>;
using StatusCode = absl::StatusCode;

inline Status ok_status() {
  return absl::OkStatus();
}

/// A status whose message is formatted with fmt; it must hold the offending value and its place.
/// (Debian's Abseil has its own string_view, which absl::StrCat does not convert from std's.)
template <class... Args>
Status make_status(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
Status invalid_argument(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}
template <class... Args>
Status unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kUnavailable, format, std::forward<Args>(args)...);
}
template <class... Args>
Status failed_precondition(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kFailedPrecondition, format, std::forward<Args>(args)...);
}
template <class... Args>
Status resource_exhausted(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kResourceExhausted, format, std::forward<Args>(args)...);
}
template <class... Args>
Status not_found(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kNotFound, format, std::forward<Args>(args)...);
}
template <class... Args>
Status data_loss(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kDataLoss, format, std::forward<Args>(args)...);
}
template <class... Args>
Status internal_error(fmt::format_string<Args...> format, Args&&... args) {
  return make_status(StatusCode::kInternal, format, std::forward<Args>(args)...);
}

inline std::string message_of(const Status& status) {
  return std::string(status.message().data(), status.message().size());
}

/// The same status with `context` and a colon in front of its message.
inline Status annotate(const Status& status, const std::string& context) {
  return status.ok() ? status : Status(status.code(), context + ": " + message_of(status));
}

}  // namespace volley

#define VOLLEY_CONCAT_INNER(a, b) a##b
#define VOLLEY_CONCAT(a, b) VOLLEY_CONCAT_INNER(a, b)

#define VOLLEY_RETURN_IF_ERROR(expression)                                    \
  do {                                                                        \
    if (::volley::Status volley_status = (expression); !volley_status.ok()) { \
      return volley_status;                                                   \
    }                                                                         \
  } while (false)

#define VOLLEY_ASSIGN_OR_RETURN(declaration, expression) \
  VOLLEY_ASSIGN_OR_RETURN_INNER(VOLLEY_CONCAT(volley_result_, __LINE__), declaration, expression)
#define VOLLEY_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                          \
  if (!result.ok()) return result.status();                            \
  declaration = std::move(result).value()
