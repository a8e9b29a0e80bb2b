#include "runs.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "fail.h"

namespace raw_verbs {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

// Direction and number of a message; the pattern in its bytes follows from them.
constexpr uint64_t kPing = 0;
constexpr uint64_t kPong = uint64_t{1} << 32;

/// Eight bytes of a message: no two words of one message are equal, nor the same word of two.
uint64_t pattern_word(uint64_t message, uint64_t index) {
  uint64_t mixed = (message << 24 ^ index) + 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
  return mixed ^ mixed >> 31;
}

void fill(uint8_t* bytes, uint64_t size, uint64_t message) {
  for (uint64_t at = 0; at < size; at += 8) {
    const uint64_t word = pattern_word(message, at / 8);
    std::memcpy(bytes + at, &word, std::min<uint64_t>(8, size - at));
  }
}

void check(const uint8_t* bytes, uint64_t size, uint64_t message) {
  for (uint64_t at = 0; at < size; at += 8) {
    const uint64_t word = pattern_word(message, at / 8);
    if (std::memcmp(bytes + at, &word, std::min<uint64_t>(8, size - at)) != 0) {
      fail("message {:#x} of {} bytes is wrong in bytes {} to {}", message, size, at,
           std::min(at + 7, size - 1));
    }
  }
}

void expect(const Endpoint::Arrival& arrival, uint32_t immediate, uint64_t size) {
  if (arrival.immediate != immediate || arrival.bytes != size) {
    fail("message {} of {} bytes arrived, expected message {} of {} bytes", arrival.immediate,
         arrival.bytes, immediate, size);
  }
}

/// Which writes ask for a completion, and the wait for the one before. What an answer proves needs
/// no completion, but the queue must be cleared now and then.
class SparseSignals {
 public:
  explicit SparseSignals(Endpoint& endpoint) : endpoint_(endpoint) {}
  ~SparseSignals() {
    if (outstanding_) endpoint_.wait_written();
  }
  SparseSignals(const SparseSignals&) = delete;
  SparseSignals& operator=(const SparseSignals&) = delete;

  bool next(uint32_t message) {
    if (message % kUnsignalledMax != 0) return false;
    if (outstanding_) endpoint_.wait_written();
    outstanding_ = true;
    return true;
  }

 private:
  Endpoint& endpoint_;
  bool outstanding_ = false;
};

double stream_acknowledged(Endpoint& endpoint, const Plan& plan) {
  const auto begin = steady_clock::now();
  {
    SparseSignals signals(endpoint);
    uint32_t posted = 0;
    for (uint32_t done = 0; done < plan.messages; ++done) {
      for (; posted < plan.messages && posted - done < plan.window; ++posted) {
        const uint32_t slot = posted % plan.window;
        if (plan.check) fill(endpoint.outgoing(slot), plan.size_bytes, posted);
        endpoint.write(slot, plan.size_bytes, posted, signals.next(posted));
      }
      expect(endpoint.wait_arrival(), done, 0);
    }
  }
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

}  // namespace

std::vector<int64_t> ping(Endpoint& endpoint, const Plan& plan) {
  std::vector<int64_t> round_trips_ns;
  round_trips_ns.reserve(plan.messages);
  SparseSignals signals(endpoint);
  for (uint32_t i = 0; i < plan.messages; ++i) {
    if (plan.check) fill(endpoint.outgoing(0), plan.size_bytes, kPing + i);
    const bool signalled = signals.next(i);
    const auto begin = steady_clock::now();
    endpoint.write(0, plan.size_bytes, i, signalled);
    const Endpoint::Arrival answer = endpoint.wait_arrival();
    round_trips_ns.push_back(nanoseconds(steady_clock::now() - begin).count());
    expect(answer, i, plan.size_bytes);
    if (plan.check) check(endpoint.incoming(0), plan.size_bytes, kPong + i);
  }
  return round_trips_ns;
}

void pong(Endpoint& endpoint, const Plan& plan) {
  SparseSignals signals(endpoint);
  for (uint32_t i = 0; i < plan.messages; ++i) {
    const Endpoint::Arrival question = endpoint.wait_arrival();
    expect(question, i, plan.size_bytes);
    if (plan.check) {
      check(endpoint.incoming(0), plan.size_bytes, kPing + i);
      fill(endpoint.outgoing(0), plan.size_bytes, kPong + i);
    }
    endpoint.write(0, plan.size_bytes, i, signals.next(i));
  }
}

double stream(Endpoint& endpoint, const Plan& plan) {
  if (plan.acknowledge) return stream_acknowledged(endpoint, plan);
  const uint32_t batch = std::clamp(plan.window / 4, 1u, kUnsignalledMax);
  const auto begin = steady_clock::now();
  uint32_t posted = 0;
  uint32_t done = 0;
  while (done < plan.messages) {
    for (; posted < plan.messages && posted - done < plan.window; ++posted) {
      const bool signalled = (posted + 1) % batch == 0 || posted + 1 == plan.messages;
      endpoint.write(posted % plan.window, plan.size_bytes, posted, signalled);
    }
    endpoint.wait_written();
    done = std::min(done + batch, plan.messages);
  }
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

void drain(Endpoint& endpoint, const Plan& plan) {
  SparseSignals signals(endpoint);
  for (uint32_t i = 0; i < plan.messages; ++i) {
    expect(endpoint.wait_arrival(), i, plan.size_bytes);
    if (plan.check) check(endpoint.incoming(i % plan.window), plan.size_bytes, i);
    if (plan.acknowledge) endpoint.write(i % plan.window, 0, i, signals.next(i));
  }
}

}  // namespace raw_verbs
