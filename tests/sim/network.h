#pragma once

// Links between attention and expert nodes, with their memory, in virtual time. Faults as real
// hardware has them: a link does not lose one message, it fails; what was under way then lands or
// not; both ends learn of it at different times, or only by silence.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "sim/checkers/slots.h"
#include "sim/world.h"
#include "volley/protocol/wire.h"

namespace volley::sim {

/// Bugs that are planted to see the checkers find them.
enum class Bug : uint8_t {
  kNone,
  kAcceptStaleAnswer,  ///< The attention shell takes any answer for the outstanding one.
  kForgetAnswer,    ///< An expert node computes a dispatch and does not answer it, once in a while.
  kReuseSlotEarly,  ///< The attention shell packs into a slot whose answer is not in.
  kDropOutput,      ///< An output does not reach the client.
  kSkipRevocation,  ///< The memory of a closed link stays writable for the old peer.
  kShareBlock,      ///< Two sequences get one KV block, as after a double free.
  kMixAnswers,      ///< A merged run returns the rows of two nodes the wrong way round.
  kCombineByArrival,  ///< Answers are added in the order of links, not of experts.
  kAnswerTwice,       ///< The expert shell ignores AnswerLink and computes duplicates.
  kLeakSequence,      ///< A cancelled sequence is not reported.
};

/// What an endpoint gets from the network, in order.
struct Arrival {
  enum Kind : uint8_t { kOpened, kMessage, kClosed };
  Kind kind = kMessage;
  uint32_t link = 0;
  uint32_t slot = 0;
  protocol::MessageHeader header;  ///< As it was on the wire.
  uint32_t origin_link = 0;        ///< Ground truth, for the checkers.
  uint64_t origin = 0;
};

/// A process that has links.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  virtual void arrive(const Arrival& arrival) = 0;
  virtual uint64_t incarnation() const = 0;
  /// Somebody has shown to be alive on the link.
  virtual void pulse_from(uint32_t link) = 0;
};

struct NetworkOptions {
  protocol::LinkGeometry geometry = {};
  uint32_t links_max = 4;  ///< Per process.
  Nanos delay_min = 2 * kMicrosecond, delay_max = 20 * kMicrosecond;
  double straggler = 0;  ///< Share of messages that take up to 50 times longer.
  double duplicate = 0;  ///< Share of messages that are announced a second time.
  Bug bug = Bug::kNone;
};

class Network {
 public:
  Network(World& world, NetworkOptions options, Violations& violations)
      : world_(world), options_(options), slots_(violations) {}

  /// A link from an attention to an expert process; both get kOpened. 0: no memory left at either
  /// end, or no way through.
  uint32_t connect(Endpoint& attention, uint32_t attention_index, Endpoint& expert,
                   uint32_t expert_index);
  /// This end is done with the link: its memory is revoked, the other end learns of it some time
  /// later.
  void close(uint32_t link, const Endpoint& by);
  /// The process is gone: nothing of it may be called any more.
  void died(const Endpoint& endpoint, bool silently);

  std::byte* send_slot(uint32_t link, const Endpoint& by, uint32_t slot);
  const std::byte* recv_slot(uint32_t link, const Endpoint& by, uint32_t slot);
  void post(uint32_t link, const Endpoint& by, uint32_t slot);
  /// The sign of life of a process on all its links.
  void pulse(const Endpoint& by);

  // Faults.
  /// The link fails now; `silently`: nobody is told.
  void fail(uint32_t link, bool silently);
  /// Blocks one direction between two nodes.
  void partition(uint32_t attention_index, uint32_t expert_index, bool to_attention, bool blocked);
  void heal();
  void set_calm();  ///< No more stragglers and duplicates.
  std::vector<uint32_t> open_links() const;
  bool open_at(uint32_t link, const Endpoint& by) const;
  uint64_t landed_after_failure() const { return landed_after_failure_; }

 private:
  struct End {
    Endpoint* process = nullptr;  ///< nullptr: dead.
    uint64_t incarnation = 0;
    uint32_t node = 0;
    uint32_t region = 0;
    bool open = false;  ///< The process still uses the link.
    bool told = false;  ///< kClosed is under way or was not needed.
  };
  struct Link {
    End attention, expert;
    bool failed = false;
  };
  struct Region {
    uint32_t owner = 0;  ///< Link; 0: free.
    std::vector<std::byte> bytes;
  };

  End& end_of(Link& link, const Endpoint& by);
  std::byte* memory(uint64_t process, uint32_t region, bool dispatch, uint32_t slot);
  Region* take_region(uint64_t process, uint32_t link, uint32_t& index);
  void deliver(uint32_t link, bool to_attention, uint32_t slot, std::vector<std::byte> bytes);
  void announce_again(uint32_t link, bool to_attention, const Arrival& arrival);
  void tell_closed(uint32_t link, bool attention_end);
  bool blocked(const Link& link, bool to_attention) const {
    return partitions_.contains({link.attention.node, link.expert.node, to_attention});
  }

  World& world_;
  NetworkOptions options_;
  SlotChecker slots_;
  std::map<uint32_t, Link> links_;
  std::map<uint64_t, std::vector<Region>> regions_;  ///< By incarnation.
  std::map<std::tuple<uint32_t, uint32_t, bool>, bool> partitions_;
  uint32_t next_link_ = 1;
  uint64_t landed_after_failure_ = 0;
};

}  // namespace volley::sim
