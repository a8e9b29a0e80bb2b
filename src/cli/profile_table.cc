#include "profile_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "format.h"

namespace volley::cli {
namespace {

const v1::NodeProfile::Span* find_span(const v1::NodeProfile& profile, const std::string& kind) {
  const auto& spans = profile.spans();
  const auto span = std::ranges::find_if(spans, [&](const auto& s) { return s.kind() == kind; });
  return span == spans.end() ? nullptr : &*span;
}

void subtract(v1::NodeProfile& profile, const v1::NodeProfile& before) {
  profile.set_wall_ns(profile.wall_ns() - before.wall_ns());
  profile.set_steps(profile.steps() - before.steps());
  for (v1::NodeProfile::Span& span : *profile.mutable_spans()) {
    const v1::NodeProfile::Span* const old = find_span(before, span.kind());
    if (old == nullptr) continue;
    span.set_count(span.count() - old->count());
    span.set_rows(span.rows() - old->rows());
    span.set_time_ns(span.time_ns() - old->time_ns());
  }
  v1::NodeProfile::Traffic& traffic = *profile.mutable_traffic();
  const v1::NodeProfile::Traffic& old = before.traffic();
  traffic.set_messages_sent(traffic.messages_sent() - old.messages_sent());
  traffic.set_messages_received(traffic.messages_received() - old.messages_received());
  traffic.set_bytes_sent(traffic.bytes_sent() - old.bytes_sent());
  traffic.set_bytes_received(traffic.bytes_received() - old.bytes_received());
  traffic.set_saved_sharing_bytes(traffic.saved_sharing_bytes() - old.saved_sharing_bytes());
  traffic.set_saved_fp8_bytes(traffic.saved_fp8_bytes() - old.saved_fp8_bytes());
  traffic.set_saved_pre_reduce_bytes(traffic.saved_pre_reduce_bytes() -
                                     old.saved_pre_reduce_bytes());
}

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

std::string milliseconds(double ns) {
  return fmt::format("{:.3f} ms", ns / 1e6);
}

/// Messages and bytes of the data plane, and the bytes that were not sent.
std::string format_traffic(const v1::NodeProfile& profile, bool by_layer) {
  const v1::NodeProfile::Traffic& traffic = profile.traffic();
  const auto steps = static_cast<double>(profile.steps());
  std::vector<std::vector<std::string>> rows = {
      {"  DATA PLANE", "MESSAGES", "BYTES", by_layer ? "BYTES PER STEP" : "BYTES PER GATHER"}};
  const auto add = [&](const char* what, const std::string& messages, uint64_t bytes) {
    rows.push_back({what, messages, std::to_string(bytes),
                    steps > 0 ? fmt::format("{:.0f}", static_cast<double>(bytes) / steps) : "-"});
  };
  add("  sent", std::to_string(traffic.messages_sent()), traffic.bytes_sent());
  add("  received", std::to_string(traffic.messages_received()), traffic.bytes_received());
  // Dispatches alone save these: an expert node would have nothing but zeros here.
  if (by_layer) add("  saved: rows once a node", "-", traffic.saved_sharing_bytes());
  if (traffic.saved_fp8_bytes() > 0) add("  saved: fp8 rows", "-", traffic.saved_fp8_bytes());
  if (traffic.saved_pre_reduce_bytes() > 0) {
    add("  saved: rows summed", "-", traffic.saved_pre_reduce_bytes());
  }
  return format_table(rows);
}

std::string format_profile(const std::string& name, v1::Role role, const v1::NodeProfile& profile) {
  const v1::NodeProfile::Span* const idle = find_span(profile, "idle");
  const auto wall = static_cast<double>(profile.wall_ns());
  const double idle_time = idle == nullptr ? 0 : static_cast<double>(idle->time_ns());
  const auto steps = static_cast<double>(profile.steps());
  // Each layer of a step has one attention span, each gather with rows one FFN span.
  const v1::NodeProfile::Span* const layer = find_span(profile, "attention");
  const double layers = layer == nullptr ? 0 : static_cast<double>(layer->count());

  std::string out = fmt::format("\n{}: {} {} in {:.2f} s, idle {:.1f} %\n", name, profile.steps(),
                                role == v1::ROLE_EXPERT ? "gathers" : "steps", wall / 1e9,
                                100 * ratio(idle_time, wall));
  const bool by_layer = role == v1::ROLE_ATTENTION;
  std::vector<std::vector<std::string>> rows = {
      {"  KIND", "SHARE", by_layer ? "PER STEP" : "PER GATHER"}};
  if (by_layer) rows.front().push_back("PER LAYER");
  rows.front().insert(rows.front().end(), {"COUNT", "ROWS"});
  for (const v1::NodeProfile::Span& span : profile.spans()) {
    if (&span == idle) continue;
    const auto time = static_cast<double>(span.time_ns());
    std::vector<std::string> row = {"  " + span.kind(),
                                    fmt::format("{:.1f} %", 100 * ratio(time, wall - idle_time)),
                                    steps > 0 ? milliseconds(time / steps) : "-"};
    if (by_layer) row.push_back(layers > 0 ? milliseconds(time / layers) : "-");
    row.push_back(std::to_string(span.count()));
    row.push_back(span.rows() > 0 ? std::to_string(span.rows()) : "-");
    rows.push_back(std::move(row));
  }
  out += format_table(rows);
  out += format_traffic(profile, by_layer);
  if (profile.measured().empty()) return out;

  rows = {{"  DECODE ROWS", "T_a", "T_e", "T_c"}};
  for (const v1::NodeProfile::Measured& times : profile.measured()) {
    rows.push_back(
        {fmt::format("  {:.1f}", times.rows()),
         milliseconds(static_cast<double>(times.attention_ns())),
         milliseconds(static_cast<double>(times.expert_ns())),
         times.transfer_ns() > 0 ? milliseconds(static_cast<double>(times.transfer_ns())) : "-"});
  }
  return out + format_table(rows);
}

}  // namespace

void subtract_profiles(v1::GetStatusResponse& status, const v1::GetStatusResponse& before) {
  for (const v1::ClusterMember& member : status.view().members()) {
    const v1::NodeRegistration& node = member.registration();
    const auto same = [&](const v1::ClusterMember& old) {
      return old.registration().name() == node.name() &&
             old.registration().incarnation() == node.incarnation();
    };
    const auto profile = status.mutable_profiles()->find(node.name());
    const auto old = before.profiles().find(node.name());
    if (profile == status.mutable_profiles()->end() || old == before.profiles().end()) continue;
    if (std::ranges::none_of(before.view().members(), same)) continue;
    subtract(profile->second, old->second);
  }
}

std::string format_profiles(const v1::GetStatusResponse& status) {
  std::string out;
  for (const v1::ClusterMember& member : status.view().members()) {
    const v1::NodeRegistration& node = member.registration();
    const auto profile = status.profiles().find(node.name());
    if (profile == status.profiles().end()) continue;
    out += format_profile(node.name(), node.role(), profile->second);
  }
  return out.empty() ? "\nno node has reported a profile\n"
                     : out + "\nSHARE is of the time that was not idle.\n";
}

}  // namespace volley::cli
