#pragma once

// The first bytes on a link, equal on every stream backend: the side that connects sends a Hello,
// the listener answers with a Welcome that accepts or says why not. Little endian, no padding.

#include <cstddef>
#include <cstdint>
#include <string>

#include "volley/transport/fabric.h"

namespace volley::transport {

inline constexpr uint32_t kHelloMagic = 0x484c4f56;    // "VOLH"
inline constexpr uint32_t kWelcomeMagic = 0x574c4f56;  // "VOLW"

/// The first 8 bytes of both structs keep their place in every wire version, so that the two sides
/// can at least tell each other which versions they speak.
struct Hello {
  uint32_t magic = kHelloMagic;                    // 0
  uint16_t wire_version = protocol::kWireVersion;  // 4
  uint16_t bytes = 160;                            // 6   of this struct
  uint64_t incarnation = 0;                        // 8
  uint32_t micro_batches = 0;                      // 16
  uint32_t dispatch[3] = {};                       // 20  rows_max, entries_max, row_bytes
  uint32_t answer[3] = {};                         // 32
  uint32_t layers = 0;                             // 44
  uint32_t dtype = 0;                              // 48
  uint32_t dispatch_dtype = 0;                     // 52
  uint32_t weight_bytes = 0;                       // 56  of an entry of a dispatch
  uint32_t reserved[5] = {};                       // 60
  uint8_t key[16] = {};                            // 80
  char name[64] = {};                              // 96  ends with a zero byte
};
static_assert(sizeof(Hello) == 160 && offsetof(Hello, key) == 80 && offsetof(Hello, name) == 96);

struct Welcome {
  uint32_t magic = kWelcomeMagic;                  // 0
  uint16_t wire_version = protocol::kWireVersion;  // 4
  uint16_t bytes = 352;                            // 6
  uint64_t incarnation = 0;                        // 8
  uint32_t code = 0;                               // 16  0 accepts, else a StatusCode
  uint32_t wire_link = 0;                          // 20
  uint64_t region = 0;    // 24  local only: names the region in the process
  char name[64] = {};     // 32  ends with a zero byte
  char reason[256] = {};  // 96  of a refusal, ends with a zero byte
};
static_assert(sizeof(Welcome) == 352 && offsetof(Welcome, reason) == 96);

/// Of the rows of dispatches.
inline uint8_t dispatch_dtype_of(const FabricOptions& options) {
  return options.dispatch_dtype != 0 ? options.dispatch_dtype : options.dtype;
}

/// Fails unless the options can be used at all. Errors: kInvalidArgument, naming the field.
Status check_options(const FabricOptions& options);

Hello make_hello(const FabricOptions& self, const LinkKey& key);
/// The listener's verdict. Errors: kUnauthenticated, kFailedPrecondition, kDataLoss. The text goes
/// to the peer: it tells nothing but the name of this node before the key has been found right.
Status check_hello(const Hello& hello, const FabricOptions& self);
Welcome make_welcome(const FabricOptions& self, uint32_t wire_link);
Welcome make_refusal(const FabricOptions& self, const Status& why);
/// The connecting side's reading of the answer: a refusal becomes its status. Errors: also
/// kDataLoss, kFailedPrecondition (version).
Status check_welcome(const Welcome& welcome);

/// Both structs have passed their check.
NodeIdentity identity_of(const Hello& hello);
NodeIdentity identity_of(const Welcome& welcome);

/// What this node expects of the messages on an open link.
protocol::Expectation expectation_of(const FabricOptions& self, bool connector,
                                     Incarnation peer_incarnation, uint32_t wire_link);

}  // namespace volley::transport
