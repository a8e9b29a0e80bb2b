#include "volley/control/controller_state.h"

#include <google/protobuf/util/message_differencer.h>

#include <algorithm>

#include "volley/base/check.h"
#include "volley/base/digest.h"

namespace volley::control {
namespace {

constexpr size_t kNameBytesMax = 63;  // A NodeIdentity on the data plane holds no more.
constexpr int kLinkKeyBytes = 16;

bool computes(const v1::NodeRegistration& node) {
  return node.role() == v1::ROLE_ATTENTION || node.role() == v1::ROLE_EXPERT;
}

bool name_is_valid(const std::string& name) {
  const auto allowed = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), allowed);
}

std::string text_of(const v1::LinkGeometry& geometry) {
  return fmt::format(
      "micro_batches {}, rows_max {}, entries_max {}, row_bytes {} and {}, weight_bytes {}",
      geometry.micro_batches(), geometry.rows_max(), geometry.entries_max(), geometry.row_bytes(),
      geometry.answer_row_bytes(), geometry.weight_bytes());
}

bool same(const google::protobuf::Message& a, const google::protobuf::Message& b) {
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

// One line of the refusals: "node e1: fabric 'tcp' differs from 'shm' of a0".
Status differs(const std::string& node, const char* what, const std::string& mine,
               const std::string& theirs, const std::string& whose) {
  return failed_precondition("node {}: {} {} differs from {} of {}", node, what, mine, theirs,
                             whose);
}

}  // namespace

ControllerState::ControllerState(ControllerOptions options, uint32_t term, Nanos now)
    : options_(std::move(options)), term_(term), started_(now), number_(options_.first_number) {
  VOLLEY_CHECK(options_.report_interval > 0);
}

Status ControllerState::check_fields(const v1::NodeRegistration& node) const {
  if (!name_is_valid(node.name())) {
    return invalid_argument("name '{}': allowed are 1 to {} of the characters a-z A-Z 0-9 - _ .",
                            node.name(), kNameBytesMax);
  }
  const auto refuse = [&](const std::string& what) {
    return invalid_argument("node {}: {}", node.name(), what);
  };
  if (node.role() != v1::ROLE_FRONTEND && !computes(node)) {
    return refuse(fmt::format("role {} is none of frontend, attention, expert",
                              static_cast<int>(node.role())));
  }
  if (node.incarnation() == 0) return refuse("incarnation is 0");
  if (!computes(node)) return ok_status();
  if (node.fabric().empty()) return refuse("fabric is empty");
  if (!node.has_geometry()) return refuse("geometry is missing");
  if (node.numerics_fingerprint().empty()) return refuse("numerics_fingerprint is empty");
  if (node.role() == v1::ROLE_ATTENTION) {
    if (node.grpc_address().empty()) return refuse("grpc_address is empty");
    if (node.experts_size() != 0) return refuse("an attention node holds no experts");
    return ok_status();
  }
  if (node.fabric_address().empty()) return refuse("fabric_address is empty");
  if (node.link_key().size() != kLinkKeyBytes) {
    return refuse(fmt::format("link_key has {} bytes; it must have {}", node.link_key().size(),
                              kLinkKeyBytes));
  }
  if (node.experts_size() == 0) return refuse("an expert node must hold at least one expert");
  std::vector<bool> seen(options_.experts);
  for (const uint32_t expert : node.experts()) {
    if (expert >= options_.experts) {
      return refuse(fmt::format("expert {} is out of range; the model has {} experts", expert,
                                options_.experts));
    }
    if (seen[expert]) return refuse(fmt::format("expert {} appears twice", expert));
    seen[expert] = true;
  }
  return ok_status();
}

const ControllerState::Member* ControllerState::reference_member(const std::string& besides) const {
  const Member* first = nullptr;
  for (const auto& [name, member] : members_) {
    if (!computes(member.node) || name == besides) continue;
    if (first == nullptr || member.session < first->session) first = &member;
  }
  return first;
}

Status ControllerState::check_agreement(const v1::NodeRegistration& node) const {
  const std::string& name = node.name();
  const std::string controller = "the controller";
  if (node.wire_version() != protocol::kWireVersion) {
    return differs(name, "wire version", std::to_string(node.wire_version()),
                   std::to_string(protocol::kWireVersion), controller);
  }
  if (options_.checkpoint_digest.has_value() &&
      node.checkpoint_digest() != *options_.checkpoint_digest) {
    return differs(name, "checkpoint digest", to_hex(node.checkpoint_digest()),
                   to_hex(*options_.checkpoint_digest), controller);
  }
  const Member* reference = reference_member(name);
  if (reference != nullptr && node.checkpoint_digest() != reference->node.checkpoint_digest()) {
    return differs(name, "checkpoint digest", to_hex(node.checkpoint_digest()),
                   to_hex(reference->node.checkpoint_digest()), reference->node.name());
  }
  if (!computes(node)) return ok_status();

  const auto check_text = [&](const char* what, const std::string& mine, const std::string& wanted,
                              const std::string& theirs) {
    const auto quoted = [](const std::string& text) { return "'" + text + "'"; };
    if (!wanted.empty() && mine != wanted) {
      return differs(name, what, quoted(mine), quoted(wanted), controller);
    }
    if (reference != nullptr && mine != theirs) {
      return differs(name, what, quoted(mine), quoted(theirs), reference->node.name());
    }
    return ok_status();
  };
  VOLLEY_RETURN_IF_ERROR(
      check_text("numerics fingerprint", node.numerics_fingerprint(), options_.numerics_fingerprint,
                 reference == nullptr ? "" : reference->node.numerics_fingerprint()));
  VOLLEY_RETURN_IF_ERROR(check_text("fabric", node.fabric(), options_.fabric,
                                    reference == nullptr ? "" : reference->node.fabric()));
  if (options_.geometry.has_value() && !same(node.geometry(), *options_.geometry)) {
    return differs(name, "link geometry", text_of(node.geometry()), text_of(*options_.geometry),
                   controller);
  }
  if (reference != nullptr && !same(node.geometry(), reference->node.geometry())) {
    return differs(name, "link geometry", text_of(node.geometry()),
                   text_of(reference->node.geometry()), reference->node.name());
  }
  return ok_status();
}

Status ControllerState::check_name(const v1::NodeRegistration& node) const {
  const std::pair<std::string, uint64_t> self(node.name(), node.incarnation());
  if (std::find(replaced_.begin(), replaced_.end(), self) != replaced_.end()) {
    return failed_precondition("node {}: incarnation {} was replaced by a newer one", node.name(),
                               to_hex(node.incarnation()));
  }
  const auto member = members_.find(node.name());
  if (member != members_.end() && member->second.node.incarnation() != node.incarnation()) {
    return make_status(StatusCode::kAlreadyExists,
                       "node {}: the name is taken by the live incarnation {}", node.name(),
                       to_hex(member->second.node.incarnation()));
  }
  return ok_status();
}

Result<SessionId> ControllerState::join(const v1::NodeRegistration& node,
                                        const v1::NodeHealth& health, Nanos now, Actions& out) {
  expire(now, out);
  VOLLEY_RETURN_IF_ERROR(check_fields(node));
  VOLLEY_RETURN_IF_ERROR(check_name(node));
  VOLLEY_RETURN_IF_ERROR(check_agreement(node));

  const SessionId session{++last_session_};
  if (const auto old = members_.find(node.name()); old != members_.end()) {
    out.ended.push_back(
        {.session = old->second.session,
         .why = Status(StatusCode::kAborted, "the node joined again on another stream")});
    names_.erase(old->second.session);
  }
  const auto [last, is_new] = last_incarnations_.try_emplace(node.name(), node.incarnation());
  if (!is_new && last->second != node.incarnation()) {
    replaced_.emplace_back(node.name(), last->second);
    last->second = node.incarnation();
    if (replaced_.size() > kReplacedMax) replaced_.pop_front();
  }
  members_[node.name()] = {.session = session, .node = node, .health = health, .last_report = now};
  names_[session] = node.name();
  membership_changed(out);
  return session;
}

Status ControllerState::report(SessionId session, const v1::NodeHealth& health, Nanos now,
                               Actions& out) {
  const auto name = names_.find(session);
  if (name == names_.end()) return not_found("session {} has ended", session.value);
  Member& member = members_.at(name->second);
  member.last_report = now;
  const bool ready_changed = member.health.ready() != health.ready();
  const bool reason_changed = member.health.reason() != health.reason();
  if (!same(member.health, health)) out.health_changed = true;
  member.health = health;
  // What an expert node holds counts from when it is ready, so the expert map changes here.
  if (ready_changed && member.node.role() == v1::ROLE_EXPERT) {
    membership_changed(out);
  } else if (ready_changed || reason_changed) {
    out.view_changed = true;
  }
  return ok_status();
}

void ControllerState::profile(SessionId session, const v1::NodeProfile& profile) {
  const auto name = names_.find(session);
  if (name != names_.end()) members_.at(name->second).profile = profile;
}

void ControllerState::stream_closed(SessionId session, Actions& out) {
  const auto name = names_.find(session);
  if (name == names_.end()) return;
  members_.erase(name->second);
  names_.erase(name);
  membership_changed(out);
}

void ControllerState::tick(Nanos now, Actions& out) {
  expire(now, out);
  if (!settled_ && now - started_ >= lease()) {
    settled_ = true;
    out.view_changed = true;
  }
}

void ControllerState::expire(Nanos now, Actions& out) {
  for (auto member = members_.begin(); member != members_.end();) {
    const auto next = std::next(member);
    const Nanos silent = now - member->second.last_report;
    if (silent > lease()) {
      end(member,
          make_status(StatusCode::kDeadlineExceeded,
                      "node {}: no report for {} ms; the lease is {} ms", member->first,
                      silent / kMillisecond, lease() / kMillisecond),
          out);
    }
    member = next;
  }
}

void ControllerState::end(Members::iterator member, const Status& why, Actions& out) {
  out.ended.push_back({.session = member->second.session, .why = why});
  names_.erase(member->second.session);
  members_.erase(member);
  membership_changed(out);
}

void ControllerState::membership_changed(Actions& out) {
  ++number_;
  out.view_changed = true;
  // Names that come and go forever must not fill the memory. Only those of live members are needed
  // to keep CTL-2 for an incarnation that was just replaced; the others are a courtesy to late
  // returners.
  if (last_incarnations_.size() > kReplacedMax) {
    std::erase_if(last_incarnations_,
                  [&](const auto& entry) { return !members_.contains(entry.first); });
  }
}

v1::ClusterView ControllerState::view(Audience audience) const {
  v1::ClusterView result;
  result.set_term(term_);
  result.set_number(number_);
  result.set_report_interval_ms(static_cast<uint32_t>(options_.report_interval / kMillisecond));
  for (const auto& [name, member] : members_) {
    v1::ClusterMember& entry = *result.add_members();
    *entry.mutable_registration() = member.node;
    *entry.mutable_health() = member.health;
    if (audience != Audience::kAttention) entry.mutable_registration()->clear_link_key();
  }
  result.set_reason(not_serving_reason());
  result.set_serving(result.reason().empty());
  result.set_settled(settled_);
  return result;
}

v1::GetStatusResponse ControllerState::status() const {
  v1::GetStatusResponse result;
  *result.mutable_view() = view(Audience::kOther);
  for (const auto& [name, member] : members_) {
    if (member.profile.wall_ns() > 0) (*result.mutable_profiles())[name] = member.profile;
  }
  return result;
}

std::string ControllerState::not_serving_reason() const {
  std::vector<bool> held(options_.experts);
  std::string waiting_for;  // An attention node that is here but not ready, and why.
  bool attention_ready = false;
  for (const auto& [name, member] : members_) {
    if (member.node.role() == v1::ROLE_EXPERT && member.health.ready()) {
      for (const uint32_t expert : member.node.experts()) held[expert] = true;
    }
    if (member.node.role() != v1::ROLE_ATTENTION) continue;
    attention_ready |= member.health.ready();
    if (!member.health.ready() && waiting_for.empty()) {
      waiting_for =
          fmt::format("{}: {}", name,
                      member.health.reason().empty() ? "no reason given" : member.health.reason());
    }
  }
  const auto missing = std::find(held.begin(), held.end(), false);
  if (missing != held.end()) return fmt::format("expert {} has no holder", missing - held.begin());
  if (attention_ready) return "";
  return waiting_for.empty() ? "no attention node has joined"
                             : "no attention node is ready (" + waiting_for + ")";
}

}  // namespace volley::control
