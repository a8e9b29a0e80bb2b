#include "m2n_pattern.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "volley/base/clock.h"

namespace volley::bench {
namespace {

/// How long a peer that has nothing to do sleeps before it looks at deadline and abort again.
constexpr Nanos kLookAgain = 20 * kMillisecond;

std::vector<std::byte> filled(uint64_t bytes) {
  return std::vector<std::byte>(bytes, std::byte{0x3c});
}

/// Takes what has come, handle(arrival) for each; when nothing has, waits a moment.
class Mailbox {
 public:
  Mailbox(const M2nRun& run, M2nEndpoint& endpoint) : run_(run), endpoint_(endpoint) {
    arrived_.reserve(size_t{kM2nPeersMax} * kM2nWindowMax);
  }

  template <class Handle>
  Status step(Handle handle) {
    arrived_.clear();
    VOLLEY_RETURN_IF_ERROR(endpoint_.poll(arrived_));
    for (const M2nArrival& arrival : arrived_) VOLLEY_RETURN_IF_ERROR(handle(arrival));
    if (!arrived_.empty()) return ok_status();
    VOLLEY_RETURN_IF_ERROR(run_.check());
    switch (run_.wait) {
      case M2nWait::kSleep:
        endpoint_.wait(std::min(run_.deadline, monotonic_now() + kLookAgain));
        break;
      case M2nWait::kYield:
        std::this_thread::yield();
        break;
      case M2nWait::kPoll:
        break;
    }
    return ok_status();
  }

 private:
  const M2nRun& run_;
  M2nEndpoint& endpoint_;
  std::vector<M2nArrival> arrived_;
};

class Sender {
 public:
  Sender(const M2nRun& run, uint32_t index, M2nEndpoint& endpoint)
      : run_(run),
        index_(index),
        endpoint_(endpoint),
        mailbox_(run, endpoint),
        rows_(filled(run.shape.bytes)),
        answer_(filled(run.answer_bytes)),
        under_way_(size_t{run.shape.receivers} * run.slots),
        left_(run.shape.receivers) {}

  Status measure() {
    VOLLEY_RETURN_IF_ERROR(exchange(run_.warmup, {}));
    run_.control.senders_warm.fetch_add(1, std::memory_order_release);
    while (run_.control.senders_warm.load(std::memory_order_acquire) < run_.shape.senders) {
      VOLLEY_RETURN_IF_ERROR(run_.check());
      std::this_thread::yield();
    }
    const Nanos start = monotonic_now();
    VOLLEY_RETURN_IF_ERROR(exchange(run_.iterations, run_.samples_of(index_)));
    run_.control.elapsed_seconds[index_] = static_cast<double>(monotonic_now() - start) / kSecond;
    return ok_status();
  }

 private:
  struct UnderWay {
    uint64_t sequence = 0;
    Nanos begin = 0;
  };

  Status exchange(uint32_t iterations, std::span<double> samples) {
    return run_.options.pattern == M2nPattern::kRoundTrip ? round_trips(iterations, samples)
                                                          : stream(iterations, samples);
  }

  Status send(uint32_t link, uint32_t slot, Nanos begin) {
    under_way_[link * run_.slots + slot] = {.sequence = ++sequence_, .begin = begin};
    fill_m2n_payload(rows_, sequence_, endpoint_.send_buffer(link, slot));
    return endpoint_.post(link, slot, rows_.size());
  }
  Result<Nanos> take(const M2nArrival& arrival) {
    const UnderWay& message = under_way_[arrival.link * run_.slots + arrival.slot];
    VOLLEY_RETURN_IF_ERROR(
        read_m2n_payload(arrival.payload, run_.answer_bytes, message.sequence, answer_));
    return message.begin;
  }

  /// Each sender begins with another receiver.
  Status round_trips(uint32_t iterations, std::span<double> samples) {
    const uint32_t links = run_.shape.receivers;
    Nanos begin = monotonic_now();
    for (uint32_t round = 0; round < iterations; ++round) {
      for (uint32_t i = 0; i < links; ++i) {
        VOLLEY_RETURN_IF_ERROR(send((index_ + i) % links, 0, begin));
      }
      uint32_t outstanding = links;
      while (outstanding > 0) {
        VOLLEY_RETURN_IF_ERROR(mailbox_.step([&](const M2nArrival& arrival) -> Status {
          --outstanding;
          return take(arrival).status();
        }));
      }
      const Nanos now = monotonic_now();
      if (!samples.empty()) samples[round] = static_cast<double>(now - begin) / kSecond;
      begin = now;
    }
    return ok_status();
  }

  /// Every slot is filled again as soon as its answer is in.
  Status stream(uint32_t iterations, std::span<double> samples) {
    const uint32_t links = run_.shape.receivers;
    std::fill(left_.begin(), left_.end(), iterations);
    size_t outstanding = 0, answered = 0;
    for (uint32_t slot = 0; slot < std::min(run_.slots, iterations); ++slot) {
      for (uint32_t i = 0; i < links; ++i) {
        const uint32_t link = (index_ + i) % links;
        VOLLEY_RETURN_IF_ERROR(send(link, slot, monotonic_now()));
        --left_[link];
        ++outstanding;
      }
    }
    const auto refill = [&](const M2nArrival& arrival) -> Status {
      VOLLEY_ASSIGN_OR_RETURN(const Nanos begin, take(arrival));
      const Nanos now = monotonic_now();
      if (!samples.empty()) samples[answered] = static_cast<double>(now - begin) / kSecond;
      ++answered;
      if (left_[arrival.link] == 0) {
        --outstanding;
        return ok_status();
      }
      --left_[arrival.link];
      return send(arrival.link, arrival.slot, now);
    };
    while (outstanding > 0) VOLLEY_RETURN_IF_ERROR(mailbox_.step(refill));
    return ok_status();
  }

  const M2nRun& run_;
  uint32_t index_;
  M2nEndpoint& endpoint_;
  Mailbox mailbox_;
  std::vector<std::byte> rows_, answer_;
  std::vector<UnderWay> under_way_;  // [links][slots]
  std::vector<uint32_t> left_;       // Dispatches to send, of each link.
  uint64_t sequence_ = 0;
};

}  // namespace

void fill_m2n_payload(std::span<const std::byte> rows, uint64_t sequence, std::byte* out) {
  if (rows.empty()) return;
  std::memcpy(out, rows.data(), rows.size());
  std::memcpy(out, &sequence, sizeof sequence);
}

Status read_m2n_payload(std::span<const std::byte> payload, size_t bytes, uint64_t sequence,
                        std::span<std::byte> rows) {
  if (payload.size() != bytes) {
    return data_loss("a message has {} bytes, expected {}", payload.size(), bytes);
  }
  if (bytes == 0) return ok_status();
  std::memcpy(rows.data(), payload.data(), bytes);
  uint64_t got = 0;
  std::memcpy(&got, rows.data(), sizeof got);
  if (got == sequence) return ok_status();
  return data_loss("a message has sequence {}, expected {}", got, sequence);
}

Status run_m2n_sender(const M2nSystem& system, const M2nRun& run, uint32_t index) {
  VOLLEY_ASSIGN_OR_RETURN(const auto endpoint, system.endpoint(run, index));
  VOLLEY_RETURN_IF_ERROR(Sender(run, index, *endpoint).measure());
  run.control.senders_done.fetch_add(1, std::memory_order_release);
  // Nobody hangs up on a peer that still measures.
  while (run.control.senders_done.load(std::memory_order_acquire) < run.shape.senders) {
    VOLLEY_RETURN_IF_ERROR(run.check());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return ok_status();
}

Status run_m2n_receiver(const M2nSystem& system, const M2nRun& run, uint32_t index) {
  VOLLEY_ASSIGN_OR_RETURN(const auto endpoint, system.endpoint(run, run.shape.senders + index));
  Mailbox mailbox(run, *endpoint);
  std::vector<std::byte> rows = filled(run.shape.bytes);
  const std::vector<std::byte> answer = filled(run.answer_bytes);
  const auto answer_it = [&](const M2nArrival& arrival) -> Status {
    // Which numbers a sender uses is its own affair: the answer repeats them.
    uint64_t sequence = 0;
    if (arrival.payload.size() >= sizeof sequence) {
      std::memcpy(&sequence, arrival.payload.data(), sizeof sequence);
    }
    VOLLEY_RETURN_IF_ERROR(read_m2n_payload(arrival.payload, run.shape.bytes, sequence, rows));
    fill_m2n_payload(answer, sequence, endpoint->send_buffer(arrival.link, arrival.slot));
    return endpoint->post(arrival.link, arrival.slot, answer.size());
  };
  while (run.control.senders_done.load(std::memory_order_acquire) < run.shape.senders) {
    VOLLEY_RETURN_IF_ERROR(mailbox.step(answer_it));
  }
  return ok_status();
}

}  // namespace volley::bench
