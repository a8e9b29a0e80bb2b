#include "volley/daemon/log.h"

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

namespace volley::daemon {
namespace {

/// One JSON object per line; the message is escaped, and what is not UTF-8 in it is replaced.
class JsonFormatter : public spdlog::formatter {
 public:
  explicit JsonFormatter(std::string node) : node_(std::move(node)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto since_epoch = message.time.time_since_epoch();
    const nlohmann::json line = {
        {"time", std::chrono::duration<double>(since_epoch).count()},
        {"level", std::string(spdlog::level::to_string_view(message.level).data(),
                              spdlog::level::to_string_view(message.level).size())},
        {"node", node_},
        {"message", std::string(message.payload.data(), message.payload.size())}};
    const std::string text =
        line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>(node_);
  }

 private:
  const std::string node_;
};

}  // namespace

Status set_up_logging(const std::string& level, const std::string& format,
                      const std::string& node) {
  static const std::string kLevels[] = {"trace", "debug", "info", "warn", "error"};
  if (std::ranges::find(kLevels, level) == std::end(kLevels)) {
    return invalid_argument("log level '{}' is not one of trace, debug, info, warn, error", level);
  }
  auto logger =
      std::make_shared<spdlog::logger>("volley", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>(node));
  } else if (format == "text") {
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l [" + node + "] %v");
  } else {
    return invalid_argument("log format '{}' is neither text nor json", format);
  }
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return ok_status();
}

}  // namespace volley::daemon
