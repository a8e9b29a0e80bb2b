#pragma once

// What two ends of an `rdma` link tell each other: the offer behind hello and welcome, and the
// immediate that ends every part of a message. Little endian, no padding.

#include <cstddef>
#include <cstdint>

#include "volley/protocol/wire.h"
#include "volley/rdma/verbs.h"
#include "volley/transport/rdma_options.h"

namespace volley::transport {

inline constexpr uint32_t kOfferMagic = 0x524c4f56;  // "VOLR"

/// One queue pair of one end, and the key to that end's memory through it.
struct RailOffer {
  uint8_t gid[16] = {};          // 0
  uint32_t queue_pair = 0;       // 16
  uint32_t packet_sequence = 0;  // 20
  uint32_t rkey = 0;             // 24
  uint16_t lid = 0;              // 28
  uint16_t mtu = 0;              // 30  bytes
  uint32_t link_layer = 0;       // 32  1 InfiniBand, 2 Ethernet
  uint32_t reserved = 0;         // 36
};
static_assert(sizeof(RailOffer) == 40);

struct RdmaOffer {
  uint32_t magic = kOfferMagic;                    // 0
  uint16_t wire_version = protocol::kWireVersion;  // 4
  uint16_t bytes = 392;                            // 6
  uint32_t rails = 0;                              // 8
  uint32_t reserved = 0;                           // 12
  uint64_t slots_address = 0;                      // 16  of incoming slot 0
  uint64_t pulse_address = 0;                      // 24  of the incoming pulse counter
  RailOffer rail[kRailsMax];                       // 32
  RailOffer pulse;                                 // 352
};
static_assert(sizeof(RdmaOffer) == 392 && offsetof(RdmaOffer, pulse) == 352);

inline RailOffer make_rail_offer(const rdma::Endpoint& endpoint, uint32_t rkey) {
  RailOffer offer;
  std::copy(endpoint.gid.begin(), endpoint.gid.end(), offer.gid);
  offer.queue_pair = endpoint.queue_pair;
  offer.packet_sequence = endpoint.packet_sequence;
  offer.rkey = rkey;
  offer.lid = endpoint.lid;
  offer.mtu = endpoint.mtu;
  offer.link_layer = static_cast<uint32_t>(endpoint.link_layer);
  return offer;
}
inline rdma::Endpoint endpoint_of(const RailOffer& offer) {
  rdma::Endpoint endpoint;
  std::copy(std::begin(offer.gid), std::end(offer.gid), endpoint.gid.begin());
  endpoint.queue_pair = offer.queue_pair & 0xffffff;
  endpoint.packet_sequence = offer.packet_sequence & 0xffffff;
  endpoint.lid = offer.lid;
  endpoint.link_layer = offer.link_layer == static_cast<uint32_t>(rdma::LinkLayer::kInfiniBand)
                            ? rdma::LinkLayer::kInfiniBand
                            : rdma::LinkLayer::kEthernet;
  endpoint.mtu = offer.mtu;
  return endpoint;
}

/// The 32 bits of a write with immediate. No order holds across queue pairs, so each part of a
/// message that is spread over several ends with one of its own, and the message is there when all
/// are.
struct Immediate {
  uint32_t slot = 0;      ///< 8 bits
  uint32_t parts = 1;     ///< 1 to 16, 4 bits
  uint32_t sequence = 0;  ///< Low 20 bits of the header's.

  static constexpr uint32_t kSequenceMask = 0xfffff;

  constexpr uint32_t pack() const {
    return (sequence & kSequenceMask) << 12 | (parts - 1) << 8 | slot;
  }
  static constexpr Immediate unpack(uint32_t bits) {
    return {.slot = bits & 0xff, .parts = (bits >> 8 & 0xf) + 1, .sequence = bits >> 12};
  }
};
static_assert(Immediate::unpack(Immediate{.slot = 31, .parts = 8, .sequence = 0xabcde}.pack())
                  .sequence == 0xabcde);

}  // namespace volley::transport
