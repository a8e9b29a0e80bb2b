#include "volley/planner/pipeline.h"

#include <algorithm>
#include <cmath>

#include "volley/scheduler/micro_batch_controller.h"

namespace volley::planner {
namespace {

// Against ratios like 0.5 that arithmetic made 0.5000000001.
constexpr double kRounding = 1e-9;

double wire_time(const perf::Device& device, double bytes) {
  return bytes / (device.network_bytes_per_s * device.efficiency.network.at(bytes));
}

}  // namespace

double LayerTimes::round_trip() const {
  return attention + expert + dispatch.total + combine.total;
}

double LayerTimes::busiest() const {
  const double compute = colocated ? attention + expert : std::max(attention, expert);
  return std::max({compute, dispatch.wire, combine.wire});
}

double batch_time(const LayerTimes& times, uint32_t micro_batches, uint32_t layers) {
  // The scheduler's formula sees only X and T_f: both stay, with the network as a possible T_f.
  const double busiest = times.busiest();
  return scheduler::pipeline_time(
      {.attention = busiest, .expert = 0, .transfer = (times.round_trip() - busiest) / 2},
      micro_batches, layers);
}

double token_period(const LayerTimes& times, uint32_t micro_batches, uint32_t layers) {
  return layers * std::max(micro_batches * times.busiest(), times.round_trip());
}

IterationBounds iteration_bounds(const LayerTimes& times, uint32_t micro_batches, uint32_t layers) {
  const double batch = micro_batches * times.busiest();
  return {.least = times.round_trip() + batch * (layers - 1.0), .most = batch * layers};
}

uint32_t micro_batches_min(double transfer_over_compute) {
  return static_cast<uint32_t>(std::ceil(2 * (1 + transfer_over_compute) - kRounding));
}

double pair_bytes(double rows, double top_k, double experts, double row_bytes, uint32_t tp) {
  return rows * top_k / experts * row_bytes / tp;
}

PhaseTime phase_time(const perf::Device& sender, double send_bytes, const perf::Device& receiver,
                     double receive_bytes) {
  if (send_bytes <= 0 && receive_bytes <= 0) return {};
  const double wire = std::max(send_bytes > 0 ? wire_time(sender, send_bytes) : 0,
                               receive_bytes > 0 ? wire_time(receiver, receive_bytes) : 0);
  return {.total = std::max(sender.efficiency.message_s, receiver.efficiency.message_s) + wire,
          .wire = wire};
}

}  // namespace volley::planner
