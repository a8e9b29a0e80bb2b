#pragma once

// The controller as a pure state machine: who is a member, with which lease, and what view of the
// cluster follows. No clock, no threads, no gRPC: events and a time go in, actions come out.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/protocol/wire.h"
#include "volley/v1/control.pb.h"

namespace volley::control {

/// One Join stream that was accepted. Never reused in the life of a controller.
using SessionId = Id<struct SessionTag, uint64_t>;

struct ControllerOptions {
  uint32_t layers = 0;
  uint32_t experts = 0;  ///< Routed experts per layer; 0 for a dense model.
  Nanos report_interval = kSecond;
  /// The view's number starts behind it. Terms that come from a clock are whole seconds; the microseconds within
  /// the second keep versions ascending when a controller starts again in the same one.
  uint32_t first_number = 0;
  /// What the cluster must agree on. Whatever is left open here is set by the first member.
  std::optional<uint64_t> checkpoint_digest;
  std::string numerics_fingerprint;
  std::string fabric;
  std::optional<v1::LinkGeometry> geometry;
};

/// Who a view is for: only attention nodes connect to expert nodes and get their link keys.
enum class Audience : uint8_t { kAttention, kOther };

/// Invariant CTL-1: the version (term, number) of the view never goes back, and two views with the
/// same version have the same members, holdings and addresses (their health may differ). Invariant
/// CTL-2: a name has at most one incarnation in the view, and an incarnation whose name another one
/// has taken since never comes back. Invariant CTL-3: a member has reported within the lease, as of
/// the last tick.
///
/// Thread: none; the caller serialises. Memory: bounded by the members plus kReplacedMax names.
class ControllerState {
 public:
  struct Ended {
    SessionId session;
    Status why;
  };
  struct Actions {
    std::vector<Ended> ended;   ///< The caller must end these streams.
    bool view_changed = false;  ///< Every member must get the new view.
    bool health_changed =
        false;  ///< Those who route by health should get it within a report interval.
  };

  ControllerState(ControllerOptions options, uint32_t term, Nanos now);

  /// Admits a node. Afterwards `session` stands for it.
  /// Errors: kFailedPrecondition (wire version, checkpoint, numerics, fabric or geometry differ:
  /// both values in the message; or the incarnation was replaced), kAlreadyExists (the name belongs
  /// to another live incarnation), kInvalidArgument (field and value). The state is as before,
  /// except for leases that had run out.
  Result<SessionId> join(const v1::NodeRegistration& node, const v1::NodeHealth& health, Nanos now,
                         Actions& out);
  /// Renews the lease. Errors: kNotFound when the session has ended.
  Status report(SessionId session, const v1::NodeHealth& health, Nanos now, Actions& out);
  /// Keeps the node's profile, which is shown to operators and changes nothing. Sessions that have
  /// ended are ignored.
  void profile(SessionId session, const v1::NodeProfile& profile);
  /// The stream is gone: the node leaves at once. Sessions that have ended are ignored.
  void stream_closed(SessionId session, Actions& out);
  /// Ends the members whose lease has run out. One lease after the start the view becomes settled.
  void tick(Nanos now, Actions& out);

  /// The members in the order of their names.
  v1::ClusterView view(Audience audience) const;
  /// View and profiles.
  v1::GetStatusResponse status() const;
  protocol::MapVersion version() const { return {.term = term_, .number = number_}; }
  Nanos lease() const { return 3 * options_.report_interval; }
  size_t member_count() const { return members_.size(); }
  /// Empty when a request could be served now; else why not.
  std::string not_serving_reason() const;

  /// Replaced incarnations that are remembered.
  static constexpr size_t kReplacedMax = 1024;

 private:
  struct Member {
    SessionId session;
    v1::NodeRegistration node;
    v1::NodeHealth health;
    v1::NodeProfile profile{};
    Nanos last_report = 0;
  };
  using Members = std::map<std::string, Member>;

  Status check_fields(const v1::NodeRegistration& node) const;
  Status check_agreement(const v1::NodeRegistration& node) const;
  Status check_name(const v1::NodeRegistration& node) const;
  const Member* reference_member(const std::string& besides) const;
  void end(Members::iterator member, const Status& why, Actions& out);
  void expire(Nanos now, Actions& out);
  void membership_changed(Actions& out);

  const ControllerOptions options_;
  const uint32_t term_;
  const Nanos started_;
  bool settled_ = false;
  uint32_t number_;
  uint64_t last_session_ = 0;
  Members members_;
  std::map<SessionId, std::string> names_;  ///< Of live sessions.
  /// The last incarnation under each name, to know what a newer one replaces.
  std::map<std::string, uint64_t> last_incarnations_;
  std::deque<std::pair<std::string, uint64_t>> replaced_;
};

}  // namespace volley::control
