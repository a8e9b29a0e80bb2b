#include "sim/network.h"

#include <algorithm>
#include <cstring>

#include "volley/base/check.h"

namespace volley::sim {

namespace {

constexpr Nanos kStalled = 300 * kMicrosecond;  ///< A blocked direction is tried again after this.

size_t message_bytes(const protocol::MessageHeader& header, const protocol::SlotLayout& layout) {
  return layout.rows_offset() + size_t{header.row_count} * header.row_bytes;
}

}  // namespace

Network::End& Network::end_of(Link& link, const Endpoint& by) {
  if (link.attention.process == &by) return link.attention;
  VOLLEY_CHECK(link.expert.process == &by);
  return link.expert;
}

Network::Region* Network::take_region(uint64_t process, uint32_t link, uint32_t& index) {
  std::vector<Region>& all = regions_[process];
  if (all.empty()) all.resize(options_.links_max);
  for (index = 0; index < all.size(); ++index) {
    if (all[index].owner != 0) continue;
    all[index].owner = link;
    all[index].bytes.assign(options_.geometry.region_bytes(), std::byte{0});
    return &all[index];
  }
  return nullptr;
}

std::byte* Network::memory(uint64_t process, uint32_t region, bool dispatch, uint32_t slot) {
  const protocol::LinkGeometry& geometry = options_.geometry;
  const size_t dispatches = geometry.slot_count() * geometry.dispatch.slot_bytes();
  return regions_.at(process)[region].bytes.data() +
         (dispatch ? slot * geometry.dispatch.slot_bytes()
                   : dispatches + slot * geometry.answer.slot_bytes());
}

uint32_t Network::connect(Endpoint& attention, uint32_t attention_index, Endpoint& expert,
                          uint32_t expert_index) {
  Link link;
  link.attention = {
      .process = &attention, .incarnation = attention.incarnation(), .node = attention_index};
  link.expert = {.process = &expert, .incarnation = expert.incarnation(), .node = expert_index};
  if (blocked(link, true) || blocked(link, false)) return 0;
  const uint32_t id = next_link_;
  Region* first = take_region(link.attention.incarnation, id, link.attention.region);
  if (first == nullptr) return 0;
  if (take_region(link.expert.incarnation, id, link.expert.region) == nullptr) {
    first->owner = 0;
    return 0;
  }
  ++next_link_;
  link.attention.open = link.expert.open = true;
  links_.emplace(id, link);
  world_.note(1, id, mix(attention_index, expert_index));
  expert.arrive({.kind = Arrival::kOpened,
                 .link = id,
                 .slot = 0,
                 .header = {},
                 .origin_link = id,
                 .origin = link.attention.incarnation});
  attention.arrive({.kind = Arrival::kOpened,
                    .link = id,
                    .slot = 0,
                    .header = {},
                    .origin_link = id,
                    .origin = link.expert.incarnation});
  return id;
}

void Network::close(uint32_t id, const Endpoint& by) {
  Link& link = links_.at(id);
  End& own = end_of(link, by);
  if (!own.open) return;
  own.open = false;
  own.told = true;
  // Revocation: from here on nothing of the old peer reaches this memory.
  regions_.at(own.incarnation)[own.region].owner = 0;
  fail(id, false);
}

void Network::fail(uint32_t id, bool silently) {
  Link& link = links_.at(id);
  link.failed = true;
  world_.note(2, id, silently ? 1 : 0);
  if (silently) return;
  tell_closed(id, true);
  tell_closed(id, false);
}

void Network::tell_closed(uint32_t id, bool attention_end) {
  Link& link = links_.at(id);
  End& end = attention_end ? link.attention : link.expert;
  if (!end.open || end.told || end.process == nullptr) return;
  if (blocked(link, attention_end)) return;  // It has to find out by silence.
  end.told = true;
  world_.after(world_.between(0, kMillisecond), [this, id, attention_end] {
    Link& failed = links_.at(id);
    End& target = attention_end ? failed.attention : failed.expert;
    if (!target.open || target.process == nullptr) return;
    target.process->arrive({.kind = Arrival::kClosed,
                            .link = id,
                            .slot = 0,
                            .header = {},
                            .origin_link = id,
                            .origin = 0});
  });
}

void Network::died(const Endpoint& endpoint, bool silently) {
  for (auto& [id, link] : links_) {
    for (End* end : {&link.attention, &link.expert}) {
      if (end->process != &endpoint) continue;
      const bool was_open = end->open;
      end->process = nullptr;
      end->open = false;
      if (was_open) fail(id, silently);
    }
  }
}

std::byte* Network::send_slot(uint32_t id, const Endpoint& by, uint32_t slot) {
  Link& link = links_.at(id);
  End& own = end_of(link, by);
  return memory(own.incarnation, own.region, &own == &link.attention, slot);
}

const std::byte* Network::recv_slot(uint32_t id, const Endpoint& by, uint32_t slot) {
  Link& link = links_.at(id);
  End& own = end_of(link, by);
  return memory(own.incarnation, own.region, &own != &link.attention, slot);
}

void Network::post(uint32_t id, const Endpoint& by, uint32_t slot) {
  Link& link = links_.at(id);
  End& own = end_of(link, by);
  VOLLEY_CHECK(own.open);
  const bool to_attention = &own == &link.expert;
  slots_.posted(id, !to_attention, slot);
  const std::byte* bytes = memory(own.incarnation, own.region, !to_attention, slot);
  const auto& layout = to_attention ? options_.geometry.answer : options_.geometry.dispatch;
  std::vector<std::byte> message(bytes, bytes + message_bytes(protocol::header_of(bytes), layout));
  Nanos delay = world_.between(options_.delay_min, options_.delay_max);
  if (world_.random().chance(options_.straggler)) {
    delay *= 1 + static_cast<Nanos>(world_.random().below(50));
  }
  world_.after(delay, [this, id, to_attention, slot, message = std::move(message)]() mutable {
    deliver(id, to_attention, slot, std::move(message));
  });
}

void Network::deliver(uint32_t id, bool to_attention, uint32_t slot, std::vector<std::byte> bytes) {
  Link& link = links_.at(id);
  End& to = to_attention ? link.attention : link.expert;
  const End& from = to_attention ? link.expert : link.attention;
  if (!link.failed && blocked(link, to_attention)) {
    world_.after(kStalled, [this, id, to_attention, slot, bytes = std::move(bytes)]() mutable {
      deliver(id, to_attention, slot, std::move(bytes));
    });
    return;
  }
  // The tail of a failed link: nobody knows which of its writes land.
  if (link.failed && world_.random().chance(0.5)) return;
  if (to.process == nullptr) return;
  Region& region = regions_.at(to.incarnation)[to.region];
  const bool revoked = !to.open && options_.bug != Bug::kSkipRevocation;
  if (revoked) return;
  if (link.failed) ++landed_after_failure_;
  if (region.owner == 0) return;  // Planted bug or not: nobody uses this memory now.
  slots_.region_owner(id, region.owner);
  std::byte* target = memory(to.incarnation, to.region, !to_attention, slot);
  if (from.open && !link.failed) {
    const std::byte* source = memory(from.incarnation, from.region, !to_attention, slot);
    slots_.unchanged(id, slot, std::memcmp(source, bytes.data(), bytes.size()) == 0);
  }
  slots_.delivered(region.owner, to_attention, slot);
  std::memcpy(target, bytes.data(), bytes.size());
  Arrival arrival{.kind = Arrival::kMessage,
                  .link = region.owner,
                  .slot = slot,
                  .header = {},
                  .origin_link = id,
                  .origin = from.incarnation};
  std::memcpy(&arrival.header, bytes.data(), sizeof arrival.header);
  world_.note(3, mix(id, slot), arrival.header.sequence);
  to.process->arrive(arrival);
  if (world_.random().chance(options_.duplicate)) {
    world_.after(world_.between(0, 200 * kMicrosecond),
                 [this, id, to_attention, arrival] { announce_again(id, to_attention, arrival); });
  }
}

/// The payload does not move again: a reliable connection would not write a slot out of turn.
void Network::announce_again(uint32_t id, bool to_attention, const Arrival& arrival) {
  Link& link = links_.at(id);
  End& to = to_attention ? link.attention : link.expert;
  if (!to.open || to.process == nullptr || arrival.link != id) return;
  to.process->arrive(arrival);
}

void Network::pulse(const Endpoint& by) {
  for (auto& [id, link] : links_) {
    if (link.failed) continue;
    for (const bool from_attention : {true, false}) {
      End& from = from_attention ? link.attention : link.expert;
      End& to = from_attention ? link.expert : link.attention;
      if (from.process != &by || !from.open) continue;
      if (to.open && to.process != nullptr && !blocked(link, !from_attention)) {
        to.process->pulse_from(id);
      }
    }
  }
}

void Network::partition(uint32_t attention, uint32_t expert, bool to_attention, bool block) {
  if (block) {
    partitions_[{attention, expert, to_attention}] = true;
  } else {
    partitions_.erase({attention, expert, to_attention});
  }
}

void Network::heal() {
  partitions_.clear();
}

void Network::set_calm() {
  options_.straggler = options_.duplicate = 0;
}

std::vector<uint32_t> Network::open_links() const {
  std::vector<uint32_t> open;
  for (const auto& [id, link] : links_) {
    if (!link.failed) open.push_back(id);
  }
  return open;
}

bool Network::open_at(uint32_t id, const Endpoint& by) const {
  const Link& link = links_.at(id);
  return (link.attention.process == &by && link.attention.open) ||
         (link.expert.process == &by && link.expert.open);
}

}  // namespace volley::sim
