#include "node_setup.h"

#include <gnu/libc-version.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "volley/base/cores.h"
#include "volley/base/fd.h"
#include "volley/control/cluster_view.h"
#include "volley/engine/attention_engine.h"
#include "volley/engine/dispatch_rows.h"
#include "volley/rdma/device.h"
#include "volley/transport/rdma_fabric.h"

namespace volley::daemon {
namespace {

// Without a limit in the file, KV memory for very long contexts would be taken by default.
constexpr uint32_t kSequenceTokensDefaultMax = 8192;

transport::RdmaOptions rdma_options(const config::RdmaConfig& rdma,
                                    const std::vector<config::RdmaPortConfig>& node_ports) {
  transport::RdmaOptions options;
  options.ports.clear();
  for (const config::RdmaPortConfig& port : node_ports.empty() ? rdma.ports : node_ports) {
    options.ports.push_back(
        {.device = port.device, .ip = port.ip, .near = port.near, .gid_index = port.gid_index});
  }
  options.queue_pairs = rdma.queue_pairs;
  // The queue pair knows timeouts of 4.096 us * 2^x: the next one that is not shorter.
  uint8_t exponent = 1;
  while (exponent < 31 && 4.096 * static_cast<double>(uint64_t{1} << exponent) <
                              static_cast<double>(rdma.ack_timeout_us)) {
    ++exponent;
  }
  options.data.ack_timeout = exponent;
  options.data.retries = static_cast<uint8_t>(rdma.retries);
  options.control = options.data;
  options.data.service_level = static_cast<uint8_t>(rdma.service_level);
  options.data.traffic_class = static_cast<uint8_t>(rdma.traffic_class);
  options.control.service_level = static_cast<uint8_t>(rdma.control_service_level);
  options.control.traffic_class = static_cast<uint8_t>(rdma.control_traffic_class);
  return options;
}

// Says which port was chosen, and what keeps its packets small.
void log_port(const std::string& node, const rdma::DeviceAttributes& port) {
  spdlog::info("{}: RDMA port {}:{}, gid {} ({}), packets of {} bytes, {} Gb/s", node, port.name,
               port.port, port.gid_index, rdma::gid_text(port.gid), port.mtu, port.rate_gbps);
  constexpr uint16_t kPacketBytesMax = 4096;
  if (port.mtu >= kPacketBytesMax) return;
  if (port.link_layer == rdma::LinkLayer::kEthernet && !port.interface.empty()) {
    spdlog::warn(
        "{}: packets of {}:{} carry {} bytes; for {} run `ip link set dev {} mtu 4200` here, at "
        "the "
        "peers and on the switches between",
        node, port.name, port.port, port.mtu, kPacketBytesMax, port.interface);
  } else {
    spdlog::warn("{}: packets of {}:{} carry {} bytes; the subnet manager can allow {}", node,
                 port.name, port.port, port.mtu, kPacketBytesMax);
  }
}

}  // namespace

Result<NodeSetup> set_up_node(const config::ClusterConfig& config) {
  NodeSetup setup;
  VOLLEY_ASSIGN_OR_RETURN(setup.checkpoint, config.model.dummy_weights || config.modelled_compute
                                                ? model::Checkpoint::open_dummy(
                                                      config.model.path, config.model.dummy_seed)
                                                : model::Checkpoint::open(config.model.path));
  VOLLEY_ASSIGN_OR_RETURN(setup.kernels, kernels::select_cpu_kernels(config.cpu_isa));
  setup.dtype = config.model.dtype == "f32" ? kernels::DType::kF32 : kernels::DType::kBf16;
  const model::ModelSpec& spec = setup.checkpoint.spec;
  setup.fp8_dispatch = config.transport.fp8_dispatch;
  setup.geometry = engine::AttentionEngine::geometry(
      spec, config.transport.micro_batches, config.transport.slot_rows, setup.dtype,
      setup.fp8_dispatch,
      config.transport.pre_reduce ? protocol::Combine::kPreReduce : protocol::Combine::kExact);
  if (setup.geometry.dispatch.row_bytes > setup.geometry.answer.row_bytes) {
    return invalid_argument(
        "{}: transport.dispatch_dtype: a row of {} elements has {} bytes in fp8_e4m3, in {} only "
        "{}",
        config.file, spec.hidden, setup.geometry.dispatch.row_bytes,
        kernels::dtype_name(setup.dtype), setup.geometry.answer.row_bytes);
  }
  const uint32_t limit = config.attention.sequence_tokens;
  if (limit > spec.max_positions) {
    return invalid_argument(
        "{}: attention.sequence_tokens: {} is more than the model's {} positions", config.file,
        limit, spec.max_positions);
  }
  setup.sequence_tokens_max =
      limit != 0 ? limit : std::min(spec.max_positions, kSequenceTokensDefaultMax);
  // All instruction sets of the CPU backend give equal bits (kernels/cpu_kernels.h), so the set is
  // not part of it; the compiler and its math library are, and the versions of the contracts: of
  // the sums (pairs), of the draw (sample), by which a request goes on at another node, and of the
  // rows of fp8 dispatches and of the sums that expert nodes make, where there are any.
  setup.numerics_fingerprint = fmt::format(
      "cpu/pairs-1/sample-2/{}{}{}/tp1/{}/libc-{}", kernels::dtype_name(setup.dtype),
      setup.fp8_dispatch ? "/dispatch-e4m3-1" : "",
      config.transport.pre_reduce ? "/pre-reduce-1" : "", __VERSION__, ::gnu_get_libc_version());
  if (config.modelled_compute) {
    setup.modelled = {.times = std::make_shared<perf::LinearStageTimes>(
                          perf::linear_times(config.modelled.times)),
                      .seed = config.modelled.seed,
                      .expert_skew = config.modelled.expert_skew};
    // Such nodes serve with others of their kind only, and nobody takes their tokens for a model's.
    setup.numerics_fingerprint =
        fmt::format("modelled-1/{}{}{}/seed-{}/skew-{}", kernels::dtype_name(setup.dtype),
                    setup.fp8_dispatch ? "/dispatch-e4m3-1" : "",
                    config.transport.pre_reduce ? "/pre-reduce-1" : "", config.modelled.seed,
                    config.modelled.expert_skew);
    spdlog::warn(
        "compute: modelled: this cluster computes NOTHING; it takes the time that {} says, and "
        "makes its tokens up",
        config.file);
  }
  return setup;
}

Result<MemoryPlacement> place_node(const config::ClusterConfig& config, const std::string& node,
                                   const std::vector<uint32_t>& cores) {
  if (const Status status = check_cores(cores); !status.ok()) {
    return annotate(status, fmt::format("{}: cores of {}", config.file, node));
  }
  MemoryPlacement placement = MemoryPlacement::near_cores(cores);
  if (!placement.status().ok()) {
    spdlog::warn("{}: memory is not placed near cores {}: {}", node, core_list_text(cores),
                 message_of(placement.status()));
  }
  return placement;
}

void warn_of_promises(const config::ClusterConfig& config, const std::string& node) {
  if (config.transport.pre_reduce) {
    spdlog::warn(
        "{}: transport.combine is pre_reduce, which gives up promise P1: the bits of logits depend "
        "on which expert node holds and computes which expert",
        node);
  }
}

void log_memory(const std::string& node) {
  const MemoryUse use = memory_use();
  constexpr size_t kMib = size_t{1} << 20;
  spdlog::info("{}: the process holds {} MiB of memory, {} MiB of it in huge pages", node,
               use.resident_bytes / kMib, use.huge_bytes / kMib);
}

Result<std::unique_ptr<transport::Fabric>> make_node_fabric(
    const config::ClusterConfig& config, const NodeSetup& setup,
    const transport::NodeIdentity& self, const transport::LinkKey& key, const std::string& listen,
    const std::vector<config::RdmaPortConfig>& rdma_ports) {
  const transport::FabricOptions options{
      .self = self,
      .geometry = setup.geometry,
      .links_max = listen.empty() ? static_cast<uint32_t>(config.expert.nodes.size())
                                  : config.transport.links_max,
      .layers = setup.checkpoint.spec.layer_count(),
      .dtype = static_cast<uint8_t>(setup.dtype),
      .dispatch_dtype =
          static_cast<uint8_t>(engine::dispatch_dtype(setup.dtype, setup.fp8_dispatch)),
      .key = key,
      .listen = listen,
      .rdma = rdma_options(config.transport.rdma, rdma_ports)};
  if (config.transport.fabric != "rdma") {
    return transport::make_fabric(config.transport.fabric, options);
  }
  std::vector<std::shared_ptr<rdma::Device>> ports;
  for (const rdma::PortSelector& selector : options.rdma.ports) {
    Result<std::shared_ptr<rdma::Device>> port = rdma::open_device(selector);
    if (!port.ok()) return port.status();
    log_port(self.name, (*port)->attributes());
    ports.push_back(*std::move(port));
  }
  return transport::make_rdma_fabric(options, std::move(ports));
}

v1::NodeRegistration make_registration(const config::ClusterConfig& config, const NodeSetup& setup,
                                       v1::Role role, const transport::NodeIdentity& self) {
  v1::NodeRegistration registration;
  registration.set_role(role);
  registration.set_name(self.name);
  registration.set_incarnation(self.incarnation.value);
  registration.set_wire_version(protocol::kWireVersion);
  registration.set_checkpoint_digest(setup.checkpoint.digest);
  registration.set_numerics_fingerprint(setup.numerics_fingerprint);
  *registration.mutable_geometry() = control::to_proto(setup.geometry);
  registration.set_fabric(config.transport.fabric);
  return registration;
}

Result<std::unique_ptr<control::ControllerClient>> join_cluster(
    const config::ClusterConfig& config, v1::NodeRegistration registration,
    std::function<v1::NodeHealth()> health, std::function<void(const v1::ClusterView&)> on_view,
    OnFailure on_refused, std::function<v1::NodeProfile()> profile) {
  const std::string name = registration.name();
  return control::ControllerClient::start(
      {.address = config.controller.listen, .registration = std::move(registration)},
      {.health = std::move(health),
       .on_view = std::move(on_view),
       .on_refused = std::move(on_refused),
       .on_connection =
           [name](const Status& status) {
             if (status.ok()) {
               spdlog::info("{}: joined the cluster", name);
             } else {
               spdlog::warn("{}: not joined, trying again: {}", name, message_of(status));
             }
           },
       .profile = std::move(profile)});
}

v1::NodeProfile profile_message(const engine::ProfileSnapshot& profile, uint64_t steps,
                                const engine::Traffic& traffic) {
  v1::NodeProfile message;
  message.set_wall_ns(static_cast<uint64_t>(profile.wall));
  message.set_steps(steps);
  for (size_t i = 0; i < engine::kSpanKinds; ++i) {
    const engine::SpanTotals& totals = profile.spans[i];
    if (totals.count == 0) continue;
    v1::NodeProfile::Span& span = *message.add_spans();
    span.set_kind(std::string(engine::span_name(static_cast<engine::Span>(i))));
    span.set_count(totals.count);
    span.set_rows(totals.rows);
    span.set_time_ns(static_cast<uint64_t>(totals.time));
  }
  v1::NodeProfile::Traffic& carried = *message.mutable_traffic();
  carried.set_messages_sent(traffic.messages_sent);
  carried.set_messages_received(traffic.messages_received);
  carried.set_bytes_sent(traffic.bytes_sent);
  carried.set_bytes_received(traffic.bytes_received);
  carried.set_saved_sharing_bytes(traffic.saved_sharing_bytes);
  carried.set_saved_fp8_bytes(traffic.saved_fp8_bytes);
  carried.set_saved_pre_reduce_bytes(traffic.saved_pre_reduce_bytes);
  return message;
}

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total_pages = 0, resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace volley::daemon
