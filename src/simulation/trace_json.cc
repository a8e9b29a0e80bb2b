// Chrome's trace event format: an array of complete events, times in microseconds. A process per
// pool, and in it two threads per node: what it computes, and what its network card sends.

#include <fmt/format.h>

#include <iterator>

#include "volley/simulation/report.h"

namespace volley::simulation {
namespace {

constexpr int kAttentionPool = 1, kExpertPool = 2;

/// Names are ours ("expert-3"), so nothing in them needs an escape.
void name_thread(std::string& out, int pool, size_t thread, const std::string& name) {
  fmt::format_to(
      std::back_inserter(out),
      "{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{},\"tid\":{},\"args\":{{\"name\":"
      "\"{}\"}}}},\n",
      pool, thread, name);
}

void name_pool(std::string& out, int pool, const char* name,
               const std::vector<std::string>& nodes) {
  fmt::format_to(
      std::back_inserter(out),
      "{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{},\"args\":{{\"name\":\"{}\"}}}},"
      "\n",
      pool, name);
  for (size_t node = 0; node < nodes.size(); ++node) {
    name_thread(out, pool, 2 * node, nodes[node]);
    name_thread(out, pool, 2 * node + 1, nodes[node] + " sends");
  }
}

std::string what(const TraceSpan& span) {
  switch (span.kind) {
    case TraceSpan::Kind::kAttention:
      return fmt::format("attention {}.{}", span.micro_batch, span.layer);
    case TraceSpan::Kind::kHead:
      return fmt::format("head {}", span.micro_batch);
    case TraceSpan::Kind::kFfn:
      return fmt::format("ffn {}.{}", span.micro_batch, span.layer);
    case TraceSpan::Kind::kGatherWindow:
      return "gather window";
    case TraceSpan::Kind::kSend:
      return fmt::format("to {}-{} {}.{}", span.expert ? "attention" : "expert", span.peers,
                         span.micro_batch, span.layer);
  }
  return "";
}

}  // namespace

std::string trace_json(const Trace& trace) {
  std::string out = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
  name_pool(out, kAttentionPool, "attention nodes", trace.attention_names);
  name_pool(out, kExpertPool, "expert nodes", trace.expert_names);
  for (const TraceSpan& span : trace.spans) {
    const bool sends = span.kind == TraceSpan::Kind::kSend;
    fmt::format_to(
        std::back_inserter(out),
        "{{\"ph\":\"X\",\"name\":\"{}\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},\"dur\":{:.3f}"
        ",\"args\":{{\"micro_batch\":{},\"layer\":{},\"rows\":{}}}}},\n",
        what(span), span.expert ? kExpertPool : kAttentionPool,
        2 * size_t{span.node} + (sends ? 1 : 0), static_cast<double>(span.begin) / 1e3,
        static_cast<double>(span.end - span.begin) / 1e3, span.micro_batch, span.layer, span.rows);
  }
  // The last element, so that every other one can end with a comma.
  fmt::format_to(
      std::back_inserter(out),
      "{{\"ph\":\"M\",\"name\":\"volley_simulation\",\"pid\":{},\"args\":{{\"cut\":{}}}}}\n"
      "]}}\n",
      kAttentionPool, trace.cut);
  return out;
}

}  // namespace volley::simulation
