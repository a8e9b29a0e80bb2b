#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>
#include <ranges>

#include "volley/rdma/device.h"

namespace volley::rdma {
namespace {

constexpr std::array<uint8_t, 12> kMappedPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool is_mapped(const std::array<uint8_t, 16>& gid) {
  return std::equal(kMappedPrefix.begin(), kMappedPrefix.end(), gid.begin());
}
bool is_link_local(const std::array<uint8_t, 16>& gid) {
  return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

Result<std::array<uint8_t, 16>> gid_of_ip(const std::string& text) {
  std::array<uint8_t, 16> gid{};
  std::copy(kMappedPrefix.begin(), kMappedPrefix.end(), gid.begin());
  if (::inet_pton(AF_INET, text.c_str(), gid.data() + kMappedPrefix.size()) == 1) return gid;
  if (::inet_pton(AF_INET6, text.c_str(), gid.data()) == 1) return gid;
  return invalid_argument("ip is '{}', allowed: a numeric IPv4 or IPv6 address", text);
}

struct DeviceName {
  std::string device;
  int port = 0;  // 0: any.
};
Result<DeviceName> parse_device(const std::string& text) {
  const size_t colon = text.find(':');
  DeviceName name{.device = text.substr(0, colon)};
  if (colon == std::string::npos) return name;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, name.port);
  if (error != std::errc() || rest != end || name.port < 1 || name.port > 255 ||
      name.device.empty()) {
    return invalid_argument("device is '{}', allowed: NAME or NAME:PORT", text);
  }
  return name;
}

std::string ports_text(const std::vector<PortDescription>& ports) {
  if (ports.empty()) return "there is no RDMA device (see `ibv_devices`; is its driver loaded?)";
  std::string text = "there are";
  for (const PortDescription& port : ports) {
    text += fmt::format(" {}:{} ({}", port.device, port.port, port.state);
    for (const GidEntry& gid : port.gids) {
      if (is_mapped(gid.bytes)) text += ", " + gid_text(gid.bytes);
    }
    text += ")";
  }
  return text;
}

// Lower is better.
int gid_rank(const PortDescription& port, const GidEntry& gid) {
  if (port.link_layer == LinkLayer::kInfiniBand) return gid.index;
  if (gid.type != GidType::kRoceV2) return 3;
  if (is_mapped(gid.bytes)) return 0;
  return is_link_local(gid.bytes) ? 2 : 1;
}

// The index of the GID to use on `port`, or -1.
int choose_gid(const PortDescription& port, const PortSelector& selector,
               const std::array<uint8_t, 16>& ip) {
  const GidEntry* best = nullptr;
  for (const GidEntry& gid : port.gids) {
    if (selector.gid_index >= 0 && gid.index != selector.gid_index) continue;
    if (!selector.ip.empty() && gid.bytes != ip) continue;
    if (best == nullptr || gid_rank(port, gid) < gid_rank(port, *best)) best = &gid;
  }
  return best == nullptr ? -1 : best->index;
}

std::string selector_text(const PortSelector& selector) {
  std::string text;
  if (!selector.device.empty()) text += fmt::format(" device '{}'", selector.device);
  if (!selector.ip.empty()) text += fmt::format(" ip '{}'", selector.ip);
  if (selector.gid_index >= 0) text += fmt::format(" gid_index {}", selector.gid_index);
  return text;
}

}  // namespace

std::string gid_text(const std::array<uint8_t, 16>& gid) {
  char text[INET6_ADDRSTRLEN];
  if (is_mapped(gid)) {
    ::inet_ntop(AF_INET, gid.data() + kMappedPrefix.size(), text, sizeof text);
  } else {
    ::inet_ntop(AF_INET6, gid.data(), text, sizeof text);
  }
  return text;
}

int pci_distance(const std::string& path, const std::string& other) {
  const auto parts = [](const std::string& text) {
    std::vector<std::string_view> out;
    for (const auto part : std::views::split(text, '/')) {
      if (!part.empty())
        out.emplace_back(&*part.begin(), static_cast<size_t>(std::ranges::distance(part)));
    }
    return out;
  };
  const auto a = parts(path), b = parts(other);
  const auto common = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  return static_cast<int>(a.size() + b.size()) - 2 * static_cast<int>(common);
}

Result<PortChoice> choose_port(const std::vector<PortDescription>& ports,
                               const PortSelector& selector, const std::string& near_path) {
  VOLLEY_ASSIGN_OR_RETURN(const DeviceName name, parse_device(selector.device));
  std::array<uint8_t, 16> ip{};
  if (!selector.ip.empty()) {
    VOLLEY_ASSIGN_OR_RETURN(ip, gid_of_ip(selector.ip));
  }
  const PortDescription* best = nullptr;
  const PortDescription* inactive = nullptr;
  int best_distance = std::numeric_limits<int>::max();
  for (const PortDescription& port : ports) {
    if (!name.device.empty() && port.device != name.device) continue;
    if (name.port != 0 && port.port != name.port) continue;
    if (choose_gid(port, selector, ip) < 0) continue;
    if (!port.active) {
      if (inactive == nullptr) inactive = &port;
      continue;
    }
    const int distance = near_path.empty() ? 0 : pci_distance(port.pci_path, near_path);
    if (best == nullptr || distance < best_distance) {
      best = &port;
      best_distance = distance;
    }
  }
  if (best != nullptr) {
    return PortChoice{best->device, best->port, choose_gid(*best, selector, ip)};
  }
  if (inactive != nullptr) {
    return failed_precondition("RDMA port {}:{} is in state {}, allowed: PORT_ACTIVE",
                               inactive->device, inactive->port, inactive->state);
  }
  if (ports.empty() && selector_text(selector).empty()) return not_found("{}", ports_text(ports));
  return not_found("no RDMA port has{}; {}",
                   selector_text(selector).empty() ? " a GID" : selector_text(selector),
                   ports_text(ports));
}

}  // namespace volley::rdma
