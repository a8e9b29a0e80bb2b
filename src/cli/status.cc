#include <google/protobuf/util/json_util.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "commands.h"
#include "format.h"
#include "profile_table.h"
#include "volley/control/credentials.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/control.grpc.pb.h"

namespace volley::cli {
namespace {

struct StatusOptions {
  std::string controller = "127.0.0.1:7070";
  uint32_t timeout_ms = 5000;
  bool json = false;
  bool profile = false;
  uint32_t interval_ms = 0;
};

Result<v1::GetStatusResponse> get_status(v1::Operator::Stub& stub, const StatusOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(options.timeout_ms));
  v1::GetStatusResponse response;
  if (const grpc::Status status = stub.GetStatus(&context, {}, &response); !status.ok()) {
    return annotate(control::from_grpc(status), "controller at " + options.controller);
  }
  return response;
}

int run_status(const StatusOptions& options) {
  const auto channel = control::make_channel({}, options.controller);
  if (!channel.ok()) return report(channel.status());
  const auto stub = v1::Operator::NewStub(*channel);
  auto answer = get_status(*stub, options);
  if (!answer.ok()) return report(answer.status());
  if (options.interval_ms > 0) {
    const v1::GetStatusResponse before = std::move(answer).value();
    std::this_thread::sleep_for(std::chrono::milliseconds(options.interval_ms));
    answer = get_status(*stub, options);
    if (!answer.ok()) return report(answer.status());
    subtract_profiles(*answer, before);
  }
  const v1::GetStatusResponse& response = *answer;
  if (options.json) {
    std::string text;
    google::protobuf::util::JsonPrintOptions print;
    print.add_whitespace = true;
    print.always_print_primitive_fields = true;
    print.preserve_proto_field_names = true;
    if (!google::protobuf::util::MessageToJsonString(response, &text, print).ok()) {
      return report(internal_error("the status cannot be written as JSON"));
    }
    std::fputs(text.c_str(), stdout);
  } else {
    std::fputs(format_cluster(response).c_str(), stdout);
    if (options.profile) std::fputs(format_profiles(response).c_str(), stdout);
  }
  return kExitOk;
}

}  // namespace

void add_status_command(CLI::App& app, const GlobalOptions&, Run& run) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* command = app.add_subcommand("status", "Shows the nodes of a running cluster");
  command->add_option("--controller", options->controller, "HOST:PORT of the controller")
      ->capture_default_str();
  command->add_option("--timeout-ms", options->timeout_ms, "How long to wait for the answer")
      ->check(CLI::Range(1u, 600'000u))
      ->capture_default_str();
  command->add_flag("--profile", options->profile,
                    "Shows where each node's engine thread spends its time");
  command
      ->add_option("--interval-ms", options->interval_ms,
                   "The profiles of so long from now on, instead of since each node's start")
      ->check(CLI::Range(1u, 600'000u));
  command->add_flag("--json", options->json, "Prints the whole status as JSON");
  command->callback([options, &run] { run = [options] { return run_status(*options); }; });
}

}  // namespace volley::cli
