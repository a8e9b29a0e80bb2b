#include "sim/cluster.h"

#include <algorithm>
#include <utility>

#include "volley/base/check.h"

namespace volley::sim {

namespace {

NetworkOptions network_options(const ClusterOptions& options) {
  NetworkOptions network = options.network;
  network.bug = options.bug;
  network.geometry = protocol::LinkGeometry::make(options.scheduler.micro_batches, options.rows_max,
                                                  options.shape.top_k, sizeof(uint64_t));
  return network;
}

}  // namespace

Cluster::Cluster(const ClusterOptions& options)
    : options_(options),
      world_(options.seed),
      checkers_(options.shape),
      network_(world_, network_options(options), checkers_.violations),
      attention_(options.attention_nodes),
      experts_(options.expert_nodes) {
  for (uint32_t index = 0; index < options_.expert_nodes; ++index) start_expert(index);
  for (uint32_t index = 0; index < options_.attention_nodes; ++index) start_attention(index);
  connect_loop();
}

ProcessOptions Cluster::process_options() const {
  return {.shape = options_.shape,
          .geometry = network_options(options_).geometry,
          .slow_kernel = calm_ ? 0 : options_.slow_kernel,
          .bad_numbers = calm_ ? 0 : options_.bad_numbers,
          .link_timeout = options_.link_timeout,
          .bug = options_.bug};
}

std::vector<uint32_t> Cluster::experts_of(uint32_t index) const {
  std::vector<uint32_t> held;
  for (uint32_t copy = 0; copy < options_.replicas; ++copy) {
    const uint32_t home = (index + copy) % options_.expert_nodes;
    const auto more =
        protocol::default_experts(options_.shape.experts, home, options_.expert_nodes);
    held.insert(held.end(), more.begin(), more.end());
  }
  std::sort(held.begin(), held.end());
  return held;
}

void Cluster::start_attention(uint32_t index) {
  VOLLEY_CHECK(attention_[index] == nullptr);
  const uint64_t incarnation = next_incarnation_++;
  names_[incarnation] = attention_name(index);
  auto process =
      std::make_unique<AttentionProcess>(world_, network_, checkers_, process_options(),
                                         options_.scheduler, attention_name(index), incarnation);
  process->name_of = [this](uint64_t other) { return names_.at(other); };
  attention_[index] = process.get();
  processes_.push_back(std::move(process));
  if (map_ != nullptr) attention_[index]->set_map(map_);
}

void Cluster::start_expert(uint32_t index) {
  VOLLEY_CHECK(experts_[index] == nullptr);
  const uint64_t incarnation = next_incarnation_++;
  names_[incarnation] = expert_name(index);
  auto process =
      std::make_unique<ExpertProcess>(world_, network_, checkers_, process_options(),
                                      expert_name(index), incarnation, experts_of(index));
  experts_[index] = process.get();
  processes_.push_back(std::move(process));
  membership_changed();
}

void Cluster::kill_attention(uint32_t index, bool silently) {
  AttentionProcess* process = std::exchange(attention_[index], nullptr);
  if (process == nullptr) return;
  process->die(silently);
  checkers_.sequences.node_died(process->incarnation());
  for (const uint32_t link : process->links()) checkers_.links.closed(link);
}

void Cluster::kill_expert(uint32_t index, bool silently) {
  ExpertProcess* process = std::exchange(experts_[index], nullptr);
  if (process == nullptr) return;
  process->die(silently);
  membership_changed();
}

/// The controller notices by lease or by registration, and tells each node in its own time.
void Cluster::membership_changed() {
  world_.after(world_.between(100 * kMicrosecond, 3 * kMillisecond), [this] { publish_map(); });
}

void Cluster::publish_map() {
  std::vector<protocol::ExpertMap::Holding> holdings;
  for (const ExpertProcess* process : experts_) {
    if (process == nullptr) continue;
    holdings.push_back(
        {.node = {.name = process->name(), .incarnation = Incarnation{process->incarnation()}},
         .experts = process->experts()});
  }
  auto map = protocol::ExpertMap::build({.term = 1, .number = ++map_number_}, options_.shape.layers,
                                        options_.shape.experts, holdings);
  VOLLEY_CHECK(map.ok());
  map_ = std::make_shared<const protocol::ExpertMap>(std::move(map).value());
  world_.note(40, map_number_);
  for (uint32_t index = 0; index < attention_.size(); ++index) {
    if (attention_[index] == nullptr) continue;
    world_.after(world_.between(0, kMillisecond), [this, index, version = map_] {
      if (attention_[index] != nullptr) attention_[index]->set_map(version);
    });
  }
  if (!options_.refuse_stale_maps) return;
  for (ExpertProcess* process : experts_) {
    if (process != nullptr) process->refuse_older_than(map_->version);
  }
}

/// Attention nodes connect to what the map names, and try again.
void Cluster::connect_loop() {
  world_.after(world_.between(200 * kMicrosecond, kMillisecond), [this] { connect_loop(); });
  for (uint32_t a = 0; a < attention_.size(); ++a) {
    for (uint32_t e = 0; e < experts_.size(); ++e) {
      if (attention_[a] == nullptr || experts_[e] == nullptr) continue;
      if (attention_[a]->linked_to(experts_[e]->name(), experts_[e]->incarnation())) continue;
      if (attention_[a]->connecting_to(experts_[e]->incarnation())) continue;
      if (network_.connect(*attention_[a], a, *experts_[e], e) != 0) {
        attention_[a]->set_connecting(experts_[e]->incarnation());
      }
    }
  }
}

uint64_t Cluster::submit(uint32_t attention, std::vector<int32_t> prompt, uint32_t max_new_tokens,
                         Nanos time_allowed) {
  const uint64_t id = next_sequence_++;
  if (attention_[attention] == nullptr) return id;
  attention_[attention]->submit({.id = SequenceId{id},
                                 .tokens = std::move(prompt),
                                 .max_new_tokens = max_new_tokens,
                                 .stop_tokens = {1, 2, 3},
                                 .deadline = time_allowed == 0 ? 0 : world_.now() + time_allowed});
  return id;
}

std::vector<int32_t> Cluster::random_prompt() {
  std::vector<int32_t> prompt(1 +
                              world_.random().below(options_.scheduler.sequence_tokens_max / 2));
  for (int32_t& token : prompt) token = static_cast<int32_t>(world_.random().below(kVocabulary));
  return prompt;
}

bool Cluster::run_until(const std::function<bool()>& condition, Nanos bound) {
  const Nanos until = world_.now() + bound;
  while (!condition()) {
    if (world_.now() >= until) return false;
    run_for(std::min(100 * kMicrosecond, until - world_.now()));
  }
  return true;
}

bool Cluster::ready() const {
  for (const AttentionProcess* process : attention_) {
    if (process == nullptr || !process->ready()) return false;
    for (const ExpertProcess* expert : experts_) {
      if (expert == nullptr || !process->linked_to(expert->name(), expert->incarnation()))
        return false;
    }
  }
  return true;
}

bool Cluster::at_rest() {
  for (AttentionProcess* process : attention_) {
    if (process != nullptr && !process->at_rest()) return false;
  }
  return checkers_.sequences.live() == 0;
}

void Cluster::heal() {
  calm_ = true;
  network_.heal();
  network_.set_calm();
  for (const auto& process : processes_) process->set_calm();
  for (uint32_t index = 0; index < experts_.size(); ++index) {
    if (experts_[index] == nullptr) start_expert(index);
  }
  for (uint32_t index = 0; index < attention_.size(); ++index) {
    if (attention_[index] == nullptr) start_attention(index);
  }
}

void Cluster::check_at_rest() {
  checkers_.sequences.at_rest();
  checkers_.links.at_rest();
  for (AttentionProcess* process : attention_) {
    if (process != nullptr) process->check();
  }
}

std::string Cluster::describe() const {
  std::string text = fmt::format("at {} us", world_.now() / kMicrosecond);
  for (const AttentionProcess* process : attention_) {
    if (process != nullptr) text = fmt::format("{}\n{}", text, process->describe());
  }
  return text;
}

}  // namespace volley::sim
