#pragma once

// Volley's RDMA verbs in memory, for tests without a network card. Devices of one FakeNetwork reach
// each other by GID and queue pair number and keep the rules of reliable-connected queue pairs, the
// harsh ones too: payload lands piece by piece before its completion, local memory is read when it
// is sent, send-queue places come back only by polling, completions are late, and a connection that
// fails leaves its sender not knowing what landed. One seed decides who moves when.
//
// Nothing moves by itself. Each call on any object of the network moves the network a little; while
// some completion queue is armed, each call moves it until nothing more can move, so that a node
// may sleep on its event file descriptors.
//
// Where real providers differ, the fake does what is harder for the caller: the place of a request
// or of a shared receive is free only when its completion has been polled; a queue pair that dies
// takes its unpolled completions along or leaves them, by seed; devices number queue pairs alike.

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "volley/rdma/verbs.h"

namespace volley::rdma {

namespace fake {
class Net;
}  // namespace fake

using Gid = std::array<uint8_t, 16>;

/// What can go wrong on its own.
struct FakeFaults {
  double drop_rate = 0;  ///< Of attempts to move pieces; each costs one of the retries in a row.
  uint32_t completion_delay_max = 0;  ///< Steps that a completion comes late, on either side.
  /// Chance that a queue pair that breaks had taken a shared receive, which then completes as
  /// kFlushed with `received` set.
  double flushed_receive_rate = 0;
};

struct FakeNetworkOptions {
  uint64_t seed = 1;
  uint32_t steps_per_call_max = 6;  ///< How far a call moves the network, at most, in steps.
  uint32_t pieces_per_step_max = 16;
  /// Only step() and drain() move the network: for tests of what lies between two steps.
  bool manual = false;
  FakeFaults faults;
};

struct FakeDeviceOptions {
  std::string name = "fake_0";
  Gid gid{};  ///< Devices with one GID share a port, as two processes of a host do.
  LinkLayer link_layer = LinkLayer::kEthernet;
  uint16_t lid = 0;
  uint16_t mtu = 4096;  ///< A piece has so many bytes, or the peer's number if that is smaller.
  double rate_gbps = 100;
  uint32_t completion_depth_max = 1 << 16;
  uint32_t shared_receives_max = 1 << 15;
  uint32_t sends_max = 1 << 14;
  uint32_t inline_bytes_max = 256;
  uint64_t registration_max = uint64_t{1} << 40;
};

/// Thread-safe, like all objects of its devices: one mutex guards everything. Operations on what
/// exists do not allocate, except when they fail. May die before its devices.
class FakeNetwork {
 public:
  explicit FakeNetwork(const FakeNetworkOptions& options = {});
  ~FakeNetwork();

  std::shared_ptr<Device> open(const FakeDeviceOptions& options);
  void set_faults(const FakeFaults& faults);

  /// Nothing passes between the two ports any more, in either direction, or it does again.
  void partition(const Gid& a, const Gid& b, bool cut);
  /// The same for what `from` sends: its payload when it writes, its acknowledgements when the
  /// other writes (which then land, and fail at their sender all the same).
  void partition_one_way(const Gid& from, const Gid& to, bool cut);
  /// The process of this device died: its queue pairs and regions are gone, peers find nobody, and
  /// every call on its objects but destruction fails with kInternal.
  void kill(Device& device);
  /// The device broke: as kill(), and kDeviceFatal.
  void break_device(Device& device);
  /// Pulls or plugs the cable of a port: kPortDown or kPortUp at all its devices.
  void set_port(const Gid& gid, bool up);
  /// connect() of the port's queue pairs blocks, as where the kernel looks for the peer's hardware
  /// address, until this is called again with false: before anything of the port is destroyed.
  void hold_connects(const Gid& gid, bool held);
  /// Threads in a connect() that is held.
  uint32_t held_connects() const;

  /// Moves one queue pair, chosen by the seed, by one step: some pieces, a receive, a completion, a
  /// failed attempt. False when none can move.
  bool step();
  void drain();

 private:
  std::shared_ptr<fake::Net> net_;
};

}  // namespace volley::rdma
