#include "cluster.h"

#include <algorithm>
#include <utility>

#include "volley/base/check.h"
#include "volley/protocol/expert_map.h"
#include "workload.h"

namespace volley::simulation {
namespace {

constexpr uint64_t kPlaceBits = 24;  // Of a request's id; as in attention_node.cc.
constexpr uint32_t kNoLink = 0xffffffff;
constexpr uint32_t kNoNode = 0xffffffff;
// More events than that at one time: no computation and no message takes any.
constexpr uint64_t kEventsAtOnceMax = 50'000'000;
constexpr uint64_t kSeedStride = 0x9e3779b97f4a7c15;

/// What two of one replica's generators start from, apart from each other.
uint64_t seed_of(const SimulationOptions& options, uint32_t replica, uint64_t purpose) {
  SplitMix64 mix(options.seed * kSeedStride + replica * 64ull + purpose);
  return mix.next();
}

}  // namespace

Cluster::Cluster(const SimulationOptions& options, const perf::StageTimes& times, uint32_t replica,
                 std::vector<ChangeOptions> changes, Report& report)
    : options_(options),
      replica_(replica),
      changes_(std::move(changes)),
      report_(report),
      world_(options, times, report),
      random_(seed_of(options, replica, 0)),
      noticed_(changes_.size(), kNoNode) {
  const ClusterOptions& cluster = options.cluster;
  const uint32_t slot_rows = cluster.slot_rows > 0 ? cluster.slot_rows : cluster.tokens_per_step;
  world_.geometry = protocol::LinkGeometry::make(
      cluster.micro_batches, slot_rows, cluster.top_k, cluster.row_bytes, cluster.answer_row_bytes,
      cluster.pre_reduce ? protocol::Combine::kPreReduce : protocol::Combine::kExact);
  world_.router =
      std::make_unique<Router>(options.router, cluster.layers, cluster.experts, cluster.top_k,
                               cluster.tokens_per_step, seed_of(options, replica, 1));
  world_.expert_rows.assign(cluster.experts, 0);
  world_.keep_trace = replica == 0 && options.trace.length_s > 0;
  report_.trace.begin = to_nanos(options.trace.from_s);
  report_.trace.end = report_.trace.begin + to_nanos(options.trace.length_s);
}

// --- Members ---

void Cluster::build() {
  for (uint32_t i = 0; i < options_.cluster.expert_nodes; ++i) add_expert(i);
  for (uint32_t i = 0; i < options_.cluster.attention_nodes; ++i) add_attention();
  members_changed();
  for (AttentionNode* node : attention_) node->set_map(map_);
}

void Cluster::add_expert(uint32_t number) {
  const ClusterOptions& cluster = options_.cluster;
  const uint32_t share = number % cluster.expert_nodes;
  std::vector<uint32_t> held =
      cluster.held.empty() ? protocol::default_experts(cluster.experts, share, cluster.expert_nodes)
                           : cluster.held[share];
  std::vector<uint32_t> place(cluster.experts, 0);
  for (uint32_t i = 0; i < held.size(); ++i) place[held[i]] = i;
  world_.places.push_back(std::move(place));
  const auto index = static_cast<uint32_t>(experts_.size());
  experts_.push_back(std::make_unique<ExpertNode>(world_, index, fmt::format("expert-{}", number),
                                                  Incarnation{++incarnations_}, std::move(held)));
  experts_.back()->attention = &attention_;
  expert_numbers_.push_back(number);
  for (auto& row : link_between_) row.push_back(kNoLink);
  for (AttentionNode* node : attention_) {
    if (node->alive()) connect(*node, *experts_.back());
  }
}

void Cluster::add_attention() {
  const auto index = static_cast<uint32_t>(attention_.size());
  attention_owner_.push_back(
      std::make_unique<AttentionNode>(world_, index, Incarnation{++incarnations_}));
  attention_.push_back(attention_owner_.back().get());
  last_pick_.push_back(0);
  link_between_.emplace_back(experts_.size(), kNoLink);
  for (auto& expert : experts_) {
    if (expert->alive()) connect(*attention_.back(), *expert);
  }
}

void Cluster::connect(AttentionNode& attention, ExpertNode& expert) {
  const auto link = static_cast<uint32_t>(world_.links.size());
  world_.links.emplace_back(attention.index(), expert.index(), world_.geometry.slot_count(),
                            static_cast<uint32_t>(expert.held().size()));
  link_between_[attention.index()][expert.index()] = link;
  expert.open_link(link);
  attention.open_link(link, expert.name(), expert.incarnation());
}

/// As the controller does: a map of what its ready members hold, under the next number.
void Cluster::members_changed() {
  std::vector<protocol::ExpertMap::Holding> holdings;
  for (const auto& expert : experts_) {
    if (!expert->listed()) continue;
    holdings.push_back({.node = {.name = expert->name(), .incarnation = expert->incarnation()},
                        .experts = expert->held()});
  }
  const CostMeter meter(world_.costs.control, world_.measured());
  auto map =
      protocol::ExpertMap::build({.term = 1, .number = ++map_number_}, options_.cluster.layers,
                                 options_.cluster.experts, holdings);
  VOLLEY_CHECK(map.ok());  // The options were checked, and names are taken once.
  map_ = std::make_shared<const protocol::ExpertMap>(std::move(map).value());
}

AttentionNode* Cluster::attention_named(uint32_t number) {
  return number < attention_.size() && attention_[number]->alive() ? attention_[number] : nullptr;
}

ExpertNode* Cluster::expert_named(uint32_t number) {
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (expert_numbers_[i] == number && experts_[i]->alive()) return experts_[i].get();
  }
  return nullptr;
}

// --- Changes ---

void Cluster::change(uint32_t index) {
  const ChangeOptions& what = changes_[index];
  const Nanos detection = to_nanos(options_.detection_s), control = to_nanos(options_.control_s);
  switch (what.kind) {
    case ChangeOptions::Kind::kKill:
      if (what.expert) {
        ExpertNode* node = expert_named(what.node);
        if (node == nullptr) return;
        noticed_[index] = node->index();
        node->kill();
      } else {
        AttentionNode* node = attention_named(what.node);
        if (node == nullptr) return;
        noticed_[index] = node->index();
        node->kill();
      }
      world_.queue.push(world_.now + detection, Event::Kind::kNoticed, index);
      return;
    case ChangeOptions::Kind::kAdd:
      if (what.expert) {
        if (expert_named(what.node) != nullptr) return;
        add_expert(what.node);
        members_changed();
        for (AttentionNode* node : attention_) {
          world_.queue.push(world_.now + control, Event::Kind::kMapArrives, node->index());
        }
      } else {
        add_attention();
        attention_.back()->set_map(map_);
      }
      return;
    case ChangeOptions::Kind::kRemove:
      if (what.expert) {
        ExpertNode* node = expert_named(what.node);
        if (node == nullptr || !node->listed()) return;
        noticed_[index] = node->index();
        node->leave();
        members_changed();
        for (AttentionNode* each : attention_) {
          world_.queue.push(world_.now + control, Event::Kind::kMapArrives, each->index());
        }
        world_.queue.push(world_.now + control + to_nanos(options_.drain_s), Event::Kind::kNoticed,
                          index);
      } else {
        AttentionNode* node = attention_named(what.node);
        if (node == nullptr) return;
        node->drain();
        if (node->in_flight() == 0) leave_attention(node->index());
      }
      return;
  }
}

/// Peers and controller know that a node is gone.
void Cluster::noticed(uint32_t index) {
  const uint32_t gone = noticed_[index];
  if (gone == kNoNode) return;
  if (!changes_[index].expert) {
    leave_attention(gone);
    return;
  }
  experts_[gone]->kill();
  for (AttentionNode* node : attention_) {
    const uint32_t link = link_between_[node->index()][gone];
    if (link != kNoLink) node->close_link(link);
  }
  if (changes_[index].kind == ChangeOptions::Kind::kRemove) return;  // The map is without it.
  members_changed();
  for (AttentionNode* node : attention_) {
    world_.queue.push(world_.now + to_nanos(options_.control_s), Event::Kind::kMapArrives,
                      node->index());
  }
}

void Cluster::leave_attention(uint32_t index) {
  attention_[index]->kill();
  for (const auto& expert : experts_) {
    const uint32_t link = link_between_[index][expert->index()];
    if (link != kNoLink) expert->close_link(link);
  }
  fail_requests_of(index);
}

/// The frontend of today ends them.
void Cluster::fail_requests_of(uint32_t node) {
  for (size_t place = 0; place < ids_.size(); ++place) {
    if (ids_[place] == 0 || world_.requests[place].node != node) continue;
    end_request(ids_[place], false, false, true);
  }
}

// --- Load ---

void Cluster::start_load() {
  const WorkloadOptions& load = options_.workload;
  if (load.arrivals != WorkloadOptions::Arrivals::kClosed) {
    schedule_arrival();
    return;
  }
  const uint32_t replicas = options_.replicas;
  const uint32_t own = load.streams / replicas + (replica_ < load.streams % replicas ? 1 : 0);
  clients_.resize(own, {.aged = load.aged});
  for (uint32_t client = 0; client < own; ++client) {
    const double at = load.spread_s * client / std::max(own, 1u);
    world_.queue.push(to_nanos(at), Event::Kind::kClient, client);
  }
}

void Cluster::schedule_arrival() {
  const WorkloadOptions& load = options_.workload;
  const double rate = load.rate / options_.replicas;
  Nanos at = 0;
  switch (load.arrivals) {
    case WorkloadOptions::Arrivals::kClosed:
      return;
    case WorkloadOptions::Arrivals::kPoisson:
      at = world_.now + to_nanos(draw_gap(rate, random_));
      break;
    case WorkloadOptions::Arrivals::kConstant:
      at = to_nanos(
          (static_cast<double>(arrivals_) + static_cast<double>(replica_) / options_.replicas) /
          rate);
      break;
    case WorkloadOptions::Arrivals::kListed:
      while (next_listed_ < load.requests.size() && next_listed_ % options_.replicas != replica_) {
        ++next_listed_;
      }
      if (next_listed_ == load.requests.size()) return;
      at = to_nanos(load.requests[next_listed_].arrival_s);
      break;
  }
  ++arrivals_;
  if (at <= world_.count_to) world_.queue.push(at, Event::Kind::kRequest);
}

/// A client's next request.
void Cluster::ask(uint32_t client) {
  if (world_.now > world_.count_to) return;
  const WorkloadOptions& load = options_.workload;
  uint32_t input = draw_length(load.input, random_), output = draw_length(load.output, random_);
  uint32_t done = 0;
  if (std::exchange(clients_[client].aged, false)) {
    done = static_cast<uint32_t>(random_.below(output));
    output -= done;
  }
  submit(input, output, client, done);
}

void Cluster::submit(uint32_t input, uint32_t output, uint32_t client, uint32_t context) {
  AttentionNode* best = nullptr;
  for (AttentionNode* node : attention_) {
    // A dead one is not known to be until its peers notice: it is still asked.
    const bool known_dead =
        !node->alive() && world_.now >= node->died() + to_nanos(options_.detection_s);
    if (known_dead || node->draining()) continue;
    if (best == nullptr || node->in_flight() < best->in_flight() ||
        (node->in_flight() == best->in_flight() &&
         last_pick_[node->index()] < last_pick_[best->index()])) {
      best = node;
    }
  }
  uint32_t place = 0;
  if (free_requests_.empty()) {
    place = static_cast<uint32_t>(world_.requests.size());
    VOLLEY_CHECK(place < 1u << kPlaceBits);
    world_.requests.emplace_back();
    ids_.push_back(0);
  } else {
    place = free_requests_.back();
    free_requests_.pop_back();
  }
  const uint64_t id = ++requests_ << kPlaceBits | place;
  const bool prefilled = options_.workload.prefilled;
  world_.requests[place] = {.arrived = world_.now,
                            .input = input,
                            .output = output,
                            .client = client,
                            .node = best == nullptr ? kNoNode : best->index(),
                            .accepted = false,
                            .hidden_context = prefilled ? context : 0};
  ids_[place] = id;
  ++live_;
  if (best == nullptr) {
    end_request(id, false, true, false);
    return;
  }
  last_pick_[best->index()] = ++picks_;
  best->submit(id);
}

void Cluster::take_ended() {
  while (!world_.nodes_with_ended.empty()) {
    const uint32_t index = world_.nodes_with_ended.back();
    world_.nodes_with_ended.pop_back();
    AttentionNode& node = *attention_[index];
    ended_.swap(node.ended);
    for (const AttentionNode::Ended& each : ended_) {
      end_request(each.id, each.ok, each.rejected, false);
    }
    ended_.clear();
    if (node.draining() && node.alive() && node.in_flight() == 0) leave_attention(index);
  }
}

void Cluster::end_request(uint64_t id, bool ok, bool rejected, bool died) {
  const auto place = static_cast<uint32_t>(id & ((1u << kPlaceBits) - 1));
  VOLLEY_CHECK(ids_[place] == id);  // SCHED-2: once only.
  ids_[place] = 0;
  free_requests_.push_back(place);
  --live_;
  if (ok) {
    ++report_.finished;
  } else if (rejected) {
    ++report_.rejected;
  } else {
    ++report_.failed;
    // The frontend had sent it to a node that was dead or about to die.
    if (!world_.requests[place].accepted) ++report_.accepted;
    ++(died ? report_.failed_attention_died : report_.failed_unavailable);
  }
  const uint32_t client = world_.requests[place].client;
  if (client == Request::kNoClient || world_.now > world_.count_to) return;
  if (ok) {
    ask(client);
  } else {
    world_.queue.push(world_.now + to_nanos(options_.workload.retry_s), Event::Kind::kClient,
                      client);
  }
}

// --- Events ---

void Cluster::handle(const Event& event) {
  switch (event.kind()) {
    case Event::Kind::kDispatchArrives:
      experts_[world_.links[event.a].expert]->arrive(event.a, event.b);
      return;
    case Event::Kind::kAnswerArrives:
      attention_[world_.links[event.a].attention]->arrive(event.a, event.b);
      return;
    case Event::Kind::kAttentionDone:
      attention_[event.a]->done();
      return;
    case Event::Kind::kExpertDone:
      experts_[event.a]->done();
      return;
    case Event::Kind::kAttentionWakes:
      attention_[event.a]->wake();
      return;
    case Event::Kind::kExpertWakes:
      experts_[event.a]->wake();
      return;
    case Event::Kind::kRequest: {
      const WorkloadOptions& load = options_.workload;
      if (load.arrivals == WorkloadOptions::Arrivals::kListed) {
        const RequestRecord& record = load.requests[next_listed_++];
        submit(record.input, record.output, Request::kNoClient, 0);
      } else {
        const uint32_t input = draw_length(load.input, random_);
        submit(input, draw_length(load.output, random_), Request::kNoClient, 0);
      }
      schedule_arrival();
      return;
    }
    case Event::Kind::kClient:
      ask(event.a);
      return;
    case Event::Kind::kChange:
      change(event.a);
      return;
    case Event::Kind::kNoticed:
      noticed(event.a);
      return;
    case Event::Kind::kMapArrives:
      attention_[event.a]->set_map(map_);
      return;
    case Event::Kind::kDrift:
      world_.router->drift();
      if (const Nanos next = world_.now + to_nanos(options_.router.drift_s);
          next <= world_.count_to) {
        world_.queue.push(next, Event::Kind::kDrift);
      }
      return;
    case Event::Kind::kWarm:
      for (const auto& expert : experts_) expert->start_counting();
      return;
  }
}

Status Cluster::run() {
  build();
  if (world_.count_from > 0) world_.queue.push(world_.count_from, Event::Kind::kWarm);
  if (options_.router.drift_s > 0) {
    world_.queue.push(to_nanos(options_.router.drift_s), Event::Kind::kDrift);
  }
  for (uint32_t i = 0; i < changes_.size(); ++i) {
    world_.queue.push(to_nanos(changes_[i].at_s), Event::Kind::kChange, i);
  }
  start_load();
  uint64_t handled = 0, at_once = 0;
  while (!world_.queue.empty()) {
    if (world_.queue.top().at > world_.count_to && (!options_.drain || live_ == 0)) break;
    const Event event = world_.queue.pop();
    at_once = event.at > world_.now ? 0 : at_once + 1;
    if (at_once > kEventsAtOnceMax) {
      return invalid_argument("at {} s time stands still: some computation must take time",
                              to_seconds(world_.now));
    }
    world_.now = event.at;
    handle(event);
    if (!world_.nodes_with_ended.empty()) take_ended();
    ++handled;
  }
  report_.events = static_cast<double>(handled);
  if (world_.queue.empty() && live_ > 0) {
    return internal_error("replica {}: at {} s nothing happens any more, but {} requests live",
                          replica_, to_seconds(world_.now), live_);
  }
  if (!options_.drain) world_.now = world_.count_to;
  summarise();
  return ok_status();
}

void Cluster::summarise() {
  report_.in_flight_at_end = static_cast<double>(live_);
  report_.map_versions = map_number_;
  const double counted = to_seconds(world_.count_to - world_.count_from);
  const auto life = [&](Nanos born, Nanos died, bool alive) {
    return counted > 0 ? world_.counted(born, alive ? world_.count_to : died) / counted : 0;
  };
  for (AttentionNode* node : attention_) {
    node->finish();
    report_.attention_nodes += life(node->born(), node->died(), node->alive());
    const auto stats = node->core().scheduler().stats();
    report_.preemptions += static_cast<double>(stats.preemptions);
    report_.prefill_tokens += static_cast<double>(stats.prefill_tokens);
  }
  for (const auto& expert : experts_) {
    expert->finish();
    expert->count();
    report_.expert_nodes += life(expert->born(), expert->died(), expert->alive());
  }
  if (world_.steps > 0) {
    report_.batch_rows = world_.batch_rows / static_cast<double>(world_.steps);
    report_.micro_batches = world_.active_micro_batches / static_cast<double>(world_.steps);
  }
  double rows = 0;
  for (const uint64_t each : world_.expert_rows) rows += static_cast<double>(each);
  report_.expert_load.assign(options_.cluster.experts, 0);
  for (uint32_t expert = 0; rows > 0 && expert < options_.cluster.experts; ++expert) {
    report_.expert_load[expert] =
        static_cast<double>(world_.expert_rows[expert]) * options_.cluster.experts / rows;
  }
  if (!world_.keep_trace) return;
  for (AttentionNode* node : attention_) {
    if (node->index() >= options_.trace.nodes_max) break;
    report_.trace.attention_names.push_back(fmt::format("attention-{}", node->index()));
  }
  for (const auto& expert : experts_) {
    if (expert->index() >= options_.trace.nodes_max) break;
    report_.trace.expert_names.push_back(expert->name());
  }
}

}  // namespace volley::simulation
