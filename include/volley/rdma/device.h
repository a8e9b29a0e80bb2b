#pragma once

// The RDMA ports of this machine, and which of them to use. Source: rdma-core's libibverbs.

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "volley/rdma/verbs.h"

namespace volley::rdma {

enum class GidType : uint8_t { kInfiniBand, kRoceV1, kRoceV2 };

struct GidEntry {
  int index = 0;
  GidType type = GidType::kRoceV2;
  std::array<uint8_t, 16> bytes{};
};
/// "10.1.2.3" for an IPv4-mapped GID, else an IPv6 address.
std::string gid_text(const std::array<uint8_t, 16>& gid);

/// One port as the machine shows it.
struct PortDescription {
  std::string device;  ///< "mlx5_0"
  uint8_t port = 1;
  LinkLayer link_layer = LinkLayer::kEthernet;
  bool active = false;
  std::string state;  ///< "PORT_ACTIVE", for messages.
  /// Where the device sits: the resolved sysfs path of its PCI function; "" for software devices.
  std::string pci_path;
  std::vector<GidEntry> gids;  ///< By index; empty entries left out.
};

/// What an operator says about the port to use. All that is given must hold.
struct PortSelector {
  std::string device;  ///< "mlx5_0", or "mlx5_0:2" with the port; "": any.
  std::string ip;      ///< Address of the network interface on that port; "": any.
  /// PCI address of a GPU, "0000:3b:00.0": of several ports the one with the fewest hops to it.
  std::string near;
  int gid_index = -1;  ///< -1: RoCE v2 over IPv4 first, then over IPv6; InfiniBand: 0.
};

struct PortChoice {
  std::string device;
  uint8_t port = 1;
  int gid_index = 0;
};

/// All ports, sorted by device name and port. Empty when there is no RDMA device. Errors:
/// kUnavailable (the kernel's verbs interface is broken).
Result<std::vector<PortDescription>> list_ports();

/// The first active port that `selector` allows, by name. `near_path` is the resolved sysfs path of
/// selector.near. Errors: kInvalidArgument (malformed selector), kNotFound (no such port, address
/// or GID), kFailedPrecondition (the port is not active); all name what there is.
Result<PortChoice> choose_port(const std::vector<PortDescription>& ports,
                               const PortSelector& selector, const std::string& near_path);

/// Hops between two resolved sysfs paths through their nearest common bridge; the further up, the
/// more. Paths without a common root complex count all their parts.
int pci_distance(const std::string& path, const std::string& other);

/// Opens a port of this machine through libibverbs. Errors: those of choose_port(), kUnavailable
/// (the device cannot be opened).
Result<std::shared_ptr<Device>> open_device(const PortSelector& selector);

}  // namespace volley::rdma
