// The paper's figures beside the planner's: a table of relative errors, and JSON for draw.py.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "common/report.h"
#include "figures.h"

namespace volley::paper_figures {
namespace {

struct Options {
  std::string catalogue = "configs";
  std::string data = "benchmarks/paper_figures/data";
  std::string json;
  std::string markdown;
};

const char* name_of(Kind kind) {
  return kind == Kind::kFitted ? "fitted" : "predicted";
}

std::string number(double value) {
  return value < 100 ? fmt::format("{:.1f}", value) : fmt::format("{:.0f}", value);
}

std::string table_of(const std::vector<Value>& values) {
  std::string text;
  std::string figure;
  for (const Value& value : values) {
    if (value.figure != figure) {
      text += fmt::format(
          "\n### {}\n\n| case | paper | ours | error | | plan |\n|---|---:|---:|---:|---|---|\n",
          value.figure);
      figure = value.figure;
    }
    const std::string error =
        value.ours > 0 ? fmt::format("{:+.1f} %", 100 * value.error()) : "none fits";
    text += fmt::format("| {}, {} | {} | {} | {} | {} | {} |\n", value.row, value.column,
                        number(value.paper), number(value.ours), error, name_of(value.kind),
                        value.note);
  }
  return text;
}

nlohmann::json json_of(const std::vector<Value>& values) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Value& value : values) {
    rows.push_back({{"figure", value.figure},
                    {"row", value.row},
                    {"column", value.column},
                    {"unit", value.unit},
                    {"paper", value.paper},
                    {"ours", value.ours},
                    {"kind", name_of(value.kind)},
                    {"note", value.note}});
  }
  return rows;
}

Status run(const Options& options, int argc, char** argv) {
  VOLLEY_RETURN_IF_ERROR(benchmarks::check_writable(options.json));
  VOLLEY_RETURN_IF_ERROR(benchmarks::check_writable(options.markdown));
  VOLLEY_ASSIGN_OR_RETURN(const Inputs inputs, read_inputs(options.catalogue, options.data));
  const std::string constants =
      fmt::format("Fitted: {:.1f} % of the compute peak, {:.0f} us per attention layer.\n",
                  100 * inputs.constants.compute, 1e6 * inputs.constants.attention_layer_s);
  std::vector<Value> values;
  for (const auto figure : {throughput_per_gpu, throughput_per_cost, transfer_times,
                            micro_batch_sweep, attention_node_sweep}) {
    VOLLEY_ASSIGN_OR_RETURN(const std::vector<Value> some, figure(inputs));
    values.insert(values.end(), some.begin(), some.end());
  }
  const std::string table = constants + table_of(values);
  fmt::print("{}", table);
  if (!options.markdown.empty()) {
    VOLLEY_RETURN_IF_ERROR(benchmarks::write_text_file(options.markdown, table));
  }
  if (options.json.empty()) return ok_status();
  const nlohmann::json report = {{"run", benchmarks::run_description(argc, argv)},
                                 {"compute", inputs.constants.compute},
                                 {"attention_layer_s", inputs.constants.attention_layer_s},
                                 {"values", json_of(values)}};
  return benchmarks::write_text_file(options.json, report.dump(1) + "\n");
}

}  // namespace
}  // namespace volley::paper_figures

int main(int argc, char** argv) {
  using namespace volley;
  paper_figures::Options options;
  CLI::App app("The figures of MegaScale-Infer beside what Volley's planner says.");
  app.add_option("--catalogue", options.catalogue, "Folder with hardware/ and models/.")
      ->capture_default_str();
  app.add_option("--data", options.data, "Folder with the paper's tables.")->capture_default_str();
  app.add_option("--json", options.json, "Write all values to this file, for draw.py.");
  app.add_option("--markdown", options.markdown, "Write the tables to this file.");
  CLI11_PARSE(app, argc, argv);
  const Status status = paper_figures::run(options, argc, argv);
  if (status.ok()) return 0;
  fmt::print(stderr, "paper_figures: {}\n", message_of(status));
  return status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kNotFound
             ? 2
             : 1;
}
