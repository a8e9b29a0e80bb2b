#include <fmt/ranges.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

#include "commands.h"
#include "volley/base/clock.h"
#include "volley/base/digest.h"
#include "volley/control/credentials.h"
#include "volley/control/grpc_status.h"
#include "volley/v1/inference.grpc.pb.h"

namespace volley::cli {
namespace {

struct GenerateOptions {
  std::string server = "127.0.0.1:7080";
  std::string prompt;
  std::vector<int32_t> token_ids;
  std::optional<uint32_t> max_new_tokens, top_k;
  std::optional<float> temperature, top_p, min_p;
  std::optional<uint64_t> seed;
  uint32_t timeout_ms = 600'000;
  bool greedy = false, ignore_eos = false, echo = false, digests = false, ids = false,
       quiet = false;
};

v1::GenerateRequest make_request(const GenerateOptions& options) {
  v1::GenerateRequest request;
  if (!options.token_ids.empty()) {
    request.mutable_token_ids()->mutable_ids()->Add(options.token_ids.begin(),
                                                    options.token_ids.end());
  } else {
    request.set_text(options.prompt);
  }
  v1::SamplingParams& sampling = *request.mutable_sampling();
  if (options.greedy) sampling.set_temperature(0);
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.top_k) sampling.set_top_k(*options.top_k);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  if (options.min_p) sampling.set_min_p(*options.min_p);
  if (options.seed) sampling.set_seed(*options.seed);
  if (options.max_new_tokens) request.set_max_new_tokens(*options.max_new_tokens);
  request.set_ignore_eos(options.ignore_eos);
  request.set_return_logits_digests(options.digests);
  return request;
}

int run_generate(const GenerateOptions& options) {
  const auto channel = control::make_channel({}, options.server);
  if (!channel.ok()) return report(channel.status());
  const auto stub = v1::Inference::NewStub(*channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(options.timeout_ms));
  const Nanos start = monotonic_now();
  Nanos first = start;
  const auto reader = stub->GenerateStream(&context, make_request(options));
  if (options.echo) std::fputs(options.prompt.c_str(), stdout);
  v1::GenerateChunk chunk, last;
  uint32_t tokens = 0;
  uint64_t digest = 0;  // Of all digests in order: one number to compare runs by.
  std::vector<int32_t> all_ids;
  std::string node;
  uint64_t seed = 0;
  while (reader->Read(&chunk)) {
    if (tokens == 0 && chunk.token_ids_size() > 0) first = monotonic_now();
    if (chunk.has_seed()) seed = chunk.seed();
    if (!chunk.attention_node().empty()) node = chunk.attention_node();
    tokens += static_cast<uint32_t>(chunk.token_ids_size());
    all_ids.insert(all_ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    for (const uint64_t one : chunk.logits_digests())
      digest = digest64(std::as_bytes(std::span(&one, 1)), digest);
    if (!options.ids) {
      std::fputs(chunk.text().c_str(), stdout);
      std::fflush(stdout);
    }
    last = chunk;
  }
  if (options.ids) std::fputs(fmt::format("{}", fmt::join(all_ids, " ")).c_str(), stdout);
  if (tokens > 0 || options.echo) std::fputc('\n', stdout);
  std::fflush(stdout);
  if (const grpc::Status status = reader->Finish(); !status.ok()) {
    return report(annotate(control::from_grpc(status), fmt::format("after {} tokens", tokens)));
  }
  if (!options.quiet) {
    const double seconds = static_cast<double>(monotonic_now() - start) / kSecond;
    const double decode = static_cast<double>(monotonic_now() - first) / kSecond;
    std::fprintf(
        stderr, "%s\n",
        fmt::format(
            "[{} + {} tokens, {}; first after {:.1f} ms, {:.1f} tokens/s, {:.2f} s; seed {}, {}{}]",
            last.usage().prompt_tokens(), tokens,
            last.finish_reason() == v1::FINISH_REASON_STOP ? "stop" : "length",
            static_cast<double>(first - start) / kMillisecond,
            tokens > 1 ? (tokens - 1) / decode : 0.0, seconds, seed, node,
            options.digests ? ", digest " + to_hex(digest) : "")
            .c_str());
  }
  return kExitOk;
}

}  // namespace

void add_generate_command(CLI::App& app, const GlobalOptions&, Run& run) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Streams a generation to the terminal");
  command->add_option("--server", options->server, "HOST:PORT of a frontend")
      ->capture_default_str();
  auto* prompt = command->add_option("prompt,--prompt", options->prompt,
                                     "The text to continue; - reads it from standard input");
  auto* ids = command
                  ->add_option("--token-ids", options->token_ids,
                               "The prompt as token ids, separated by commas")
                  ->delimiter(',');
  prompt->excludes(ids);
  command->add_option("--max-new-tokens", options->max_new_tokens,
                      "Default: up to the cluster's limit");
  auto* temperature = command->add_option("--temperature", options->temperature, "0 is greedy");
  command->add_flag("--greedy", options->greedy, "The same as --temperature 0")
      ->excludes(temperature);
  command->add_option("--top-k", options->top_k, "Keeps the k likeliest tokens; 0 is off");
  command->add_option("--top-p", options->top_p,
                      "Keeps the likeliest tokens up to this probability");
  command->add_option("--min-p", options->min_p,
                      "Drops tokens below this share of the likeliest one's");
  command->add_option("--seed", options->seed, "Default: drawn by the frontend and printed");
  command->add_flag("--ignore-eos", options->ignore_eos, "Goes on after end-of-sequence tokens");
  command->add_flag("--echo", options->echo, "Prints the prompt first");
  command->add_flag("--ids", options->ids, "Prints token ids in place of text");
  command->add_flag("--digest", options->digests,
                    "Prints one digest of all logits, to compare runs bit for bit");
  command->add_flag("--quiet", options->quiet, "No summary on standard error");
  command->add_option("--timeout-ms", options->timeout_ms, "The call's deadline")
      ->check(CLI::Range(1u, 86'400'000u))
      ->capture_default_str();
  command->callback([options, prompt, ids, &run] {
    if (prompt->count() + ids->count() == 0) throw CLI::RequiredError("prompt or --token-ids");
    if (options->prompt == "-") {
      options->prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    }
    run = [options] { return run_generate(*options); };
  });
}

}  // namespace volley::cli
