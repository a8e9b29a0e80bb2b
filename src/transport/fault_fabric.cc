#include "volley/transport/fault_fabric.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <unordered_map>
#include <vector>

#include "volley/base/clock.h"
#include "volley/base/random.h"

namespace volley::transport {
namespace {

constexpr Nanos kForever = std::numeric_limits<Nanos>::max();

struct LinkFaults {
  Nanos inbound_until = 0;  // Swallowed until then.
  Nanos outbound_until = 0;
  Nanos heard_before = 0;  // last_heard() as the inbound partition began.
  bool failed = false;     // By us; the inner link still exists.
  bool ended = false;      // By the inner fabric; the engine may not have seen it yet.
  bool reported = false;   // The engine has seen kClosed of the failure.
};

struct HeldMessage {
  FabricEvent event;
  Nanos due = 0;
};

class FaultFabricImpl final : public FaultFabric {
 public:
  FaultFabricImpl(std::unique_ptr<Fabric> inner, const FaultPolicy& policy)
      : inner_(std::move(inner)), policy_(policy), random_(policy.seed) {}

  const char* name() const override { return inner_->name(); }
  const std::string& address() const override { return inner_->address(); }
  Result<LinkId> connect(const std::string& address, const LinkKey& key) override {
    return inner_->connect(address, key);
  }
  const NodeIdentity& peer(LinkId link) const override { return inner_->peer(link); }
  uint32_t wire_link(LinkId link) const override { return inner_->wire_link(link); }
  std::byte* send_slot(LinkId link, uint32_t slot) override {
    return inner_->send_slot(link, slot);
  }
  const std::byte* recv_slot(LinkId link, uint32_t slot) const override {
    return inner_->recv_slot(link, slot);
  }
  const protocol::MessageHeader& recv_header(LinkId link, uint32_t slot) const override {
    return inner_->recv_header(link, slot);
  }
  void wake() override { inner_->wake(); }
  void pulse() override { inner_->pulse(); }
  Counters counters() const override { return inner_->counters(); }

  std::string close_reason(LinkId link) const override {
    const auto found = links_.find(link);
    if (found != links_.end() && found->second.failed) return "failed by the fault policy";
    return inner_->close_reason(link);
  }

  Nanos last_heard(LinkId link) const override {
    const auto found = links_.find(link);
    const bool deaf = found != links_.end() && monotonic_now() < found->second.inbound_until;
    return deaf ? found->second.heard_before : inner_->last_heard(link);
  }

  void close(LinkId link) override {
    inner_->close(link);
    links_.erase(link);
    std::erase_if(held_, [&](const HeldMessage& held) { return held.event.link == link; });
    std::erase_if(output_, [&](const FabricEvent& event) { return event.link == link; });
  }

  void post(LinkId link, uint32_t slot) override {
    const auto found = links_.find(link);
    if (found == links_.end()) return inner_->post(link, slot);
    LinkFaults& faults = found->second;
    if (faults.failed || faults.ended) return;
    maybe_partition(link, faults);
    const bool fails = random_.chance(policy_.link_failure_probability);
    const bool lands = !fails || random_.chance(0.5);
    // The message itself publishes it: what post() stores, the receiver of the message sees.
    if (slot < policy_.posted_here.size()) {
      policy_.posted_here[slot].store(monotonic_now(), std::memory_order_relaxed);
    }
    if (lands && monotonic_now() >= faults.outbound_until) inner_->post(link, slot);
    if (fails) fail(link, faults);
  }

  size_t poll(std::span<FabricEvent> events) override {
    reap();
    // The inner links' memory lives until the inner poll() after their kClosed: nothing may be left
    // of the last one's events by then.
    if (output_.empty()) {
      std::array<FabricEvent, 64> arrived;
      const size_t count = inner_->poll(arrived);
      const Nanos now = monotonic_now();
      for (size_t i = 0; i < count; ++i) take(arrived[i], now);
      release_due(now);
    }
    size_t count = 0;
    for (; count < events.size() && !output_.empty(); ++count) {
      events[count] = output_.front();
      output_.pop_front();
      if (events[count].kind == EventKind::kClosed) links_[events[count].link].reported = true;
    }
    return count;
  }

  void wait(Nanos deadline) override {
    if (!output_.empty()) return;
    for (const auto& [link, faults] : links_) {
      if (faults.reported) return;  // poll() has a link to end.
    }
    for (const HeldMessage& held : held_) deadline = std::min(deadline, held.due);
    inner_->wait(deadline);
  }

  void fail_link(LinkId link) override {
    const auto found = links_.find(link);
    if (found == links_.end() || found->second.failed || found->second.ended) return;
    fail(link, found->second);
  }

  void partition(LinkId link, bool inbound, bool outbound) override {
    const auto found = links_.find(link);
    if (found == links_.end()) return;
    if (inbound)
      deafen(link, found->second, kForever);
    else
      found->second.inbound_until = 0;
    found->second.outbound_until = outbound ? kForever : 0;
  }

 private:
  void deafen(LinkId link, LinkFaults& faults, Nanos until) {
    if (monotonic_now() >= faults.inbound_until) faults.heard_before = inner_->last_heard(link);
    faults.inbound_until = std::max(faults.inbound_until, until);
  }

  void maybe_partition(LinkId link, LinkFaults& faults) {
    if (!random_.chance(policy_.partition_probability)) return;
    const Nanos until = monotonic_now() + policy_.partition_time;
    if (random_.chance(0.5)) {
      deafen(link, faults, until);
    } else {
      faults.outbound_until = std::max(faults.outbound_until, until);
    }
  }

  // The inner link is closed by a later poll(), because until then the engine may touch its slots.
  void fail(LinkId link, LinkFaults& faults) {
    faults.failed = true;
    end_messages(link);
    output_.push_back({.kind = EventKind::kClosed, .link = link, .code = StatusCode::kUnavailable});
  }

  // Of the messages that we still hold some land, some do not.
  void end_messages(LinkId link) {
    std::erase_if(held_, [&](const HeldMessage& held) {
      if (held.event.link != link) return false;
      if (random_.chance(0.5)) output_.push_back(held.event);
      return true;
    });
  }

  void take(const FabricEvent& event, Nanos now) {
    if (event.kind == EventKind::kOpened) {
      links_[event.link] = {};
      output_.push_back(event);
      return;
    }
    const auto found = links_.find(event.link);
    if (found == links_.end()) {  // A link that never opened.
      output_.push_back(event);
      return;
    }
    LinkFaults& faults = found->second;
    if (faults.failed) return;
    if (event.kind == EventKind::kClosed) {
      faults.ended = true;
      end_messages(event.link);
      output_.push_back(event);
      return;
    }
    maybe_partition(event.link, faults);
    if (now < faults.inbound_until) return;
    if (random_.chance(policy_.link_failure_probability)) return fail(event.link, faults);
    Nanos delay = policy_.delay_min;
    if (policy_.delay_max > policy_.delay_min) {
      delay += static_cast<Nanos>(
          random_.below(static_cast<uint64_t>(policy_.delay_max - policy_.delay_min) + 1));
    }
    if (random_.chance(policy_.late_probability)) delay += policy_.late_delay;
    const Nanos since = event.slot < policy_.posted_there.size()
                            ? policy_.posted_there[event.slot].load(std::memory_order_relaxed)
                            : now;
    held_.push_back({event, since + delay});
  }

  void release_due(Nanos now) {
    const auto late = std::partition(held_.begin(), held_.end(),
                                     [now](const HeldMessage& held) { return held.due <= now; });
    std::sort(held_.begin(), late,
              [](const HeldMessage& a, const HeldMessage& b) { return a.due < b.due; });
    for (auto held = held_.begin(); held != late; ++held) {
      output_.push_back(held->event);
      if (random_.chance(policy_.duplicate_probability)) output_.push_back(held->event);
    }
    held_.erase(held_.begin(), late);
  }

  void reap() {
    // Also those that ended without us: the inner poll(), which would take them back, may have to
    // wait until all we hold has been reported.
    std::erase_if(links_, [this](const auto& entry) {
      const auto& [link, faults] = entry;
      if (faults.reported) inner_->close(link);
      return faults.reported;
    });
  }

  std::unique_ptr<Fabric> inner_;
  FaultPolicy policy_;
  SplitMix64 random_;
  std::unordered_map<LinkId, LinkFaults> links_;
  std::vector<HeldMessage> held_;
  std::deque<FabricEvent> output_;
};

}  // namespace

std::unique_ptr<FaultFabric> make_fault_fabric(std::unique_ptr<Fabric> inner,
                                               const FaultPolicy& policy) {
  return std::make_unique<FaultFabricImpl>(std::move(inner), policy);
}

}  // namespace volley::transport
