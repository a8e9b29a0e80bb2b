#include "m2n_steps.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "volley/base/clock.h"
#include "volley/base/fd.h"
#include "volley/bench/machine.h"

namespace volley::bench {
namespace {

constexpr Nanos kMeasureTime = 50 * kMillisecond;
constexpr size_t kSamplesMin = 20;
constexpr time_t kSocketTimeoutSeconds = 5;

/// Calls `once` for about kMeasureTime; the seconds of the fastest call. Errors: those of `once`.
template <class Once>
Result<double> best_seconds(Once once) {
  VOLLEY_RETURN_IF_ERROR(once());  // Touches the memory.
  Nanos best = std::numeric_limits<Nanos>::max();
  size_t samples = 0;
  const Nanos end = monotonic_now() + kMeasureTime;
  Nanos now = monotonic_now();
  while (now < end || samples < kSamplesMin) {
    const Nanos start = now;
    VOLLEY_RETURN_IF_ERROR(once());
    now = monotonic_now();
    best = std::min(best, now - start);
    ++samples;
  }
  return static_cast<double>(best) / kSecond;
}

/// memcpy that is not left out although nobody looks at the target.
void copy(std::span<const std::byte> source, std::span<std::byte> target) {
  std::memcpy(target.data(), source.data(), source.size());
  __asm__ volatile("" : : "r"(target.data()) : "memory");
}

Result<double> copy_seconds(uint64_t bytes) {
  // Small copies end within the clock's resolution: several are timed together.
  const uint64_t copies = std::max<uint64_t>(1, (64 << 10) / bytes);
  std::vector<std::byte> source(bytes, std::byte{1});
  std::vector<std::byte> target(bytes);
  VOLLEY_ASSIGN_OR_RETURN(const double seconds, best_seconds([&] {
                            for (uint64_t i = 0; i < copies; ++i) {
                              copy(source, target);
                            }
                            return ok_status();
                          }));
  return seconds / static_cast<double>(copies);
}

/// What a sender and a receiver do at least: each writes its message where the other reads it.
Result<double> memory_round_trip_seconds(uint64_t bytes, uint64_t answer_bytes, uint32_t far_core) {
  constexpr uint32_t kStop = std::numeric_limits<uint32_t>::max();
  std::vector<std::byte> dispatch(bytes),
      answer(answer_bytes);  // Written and read by both.
  alignas(64) std::atomic<uint32_t> dispatched{0};
  alignas(64) std::atomic<uint32_t> answered{0};
  // Gives up the core only when it has looked for long: the other end may need it after all.
  const auto wait_while = [](const std::atomic<uint32_t>& flag, uint32_t value) {
    for (uint32_t looks = 1; flag.load(std::memory_order_acquire) == value; ++looks) {
      if (looks % 100'000 == 0) std::this_thread::yield();
    }
  };
  std::thread echo([&] {
    // A failure only makes the figure worse.
    [[maybe_unused]] const Status pinned = pin_this_thread(far_core);
    std::vector<std::byte> rows(bytes);
    const std::vector<std::byte> own(answer_bytes, std::byte{1});
    for (uint32_t round = 0;; ++round) {
      wait_while(dispatched, round);
      if (dispatched.load(std::memory_order_acquire) == kStop) return;
      copy(dispatch, rows);
      copy(own, answer);
      answered.store(round + 1, std::memory_order_release);
    }
  });
  const std::vector<std::byte> rows(bytes, std::byte{1});
  std::vector<std::byte> own(answer_bytes);
  uint32_t round = 0;
  const auto seconds = best_seconds([&] {
    copy(rows, dispatch);
    dispatched.store(round + 1, std::memory_order_release);
    wait_while(answered, round);
    copy(answer, own);
    ++round;
    return ok_status();
  });
  dispatched.store(kStop, std::memory_order_release);
  echo.join();
  return seconds;
}

Status socket_error(const char* what) {
  return unavailable("plain socket, {}: {}", what, errno_text(errno));
}

/// Sends or receives all of `bytes`: `transfer` is ::send or ::recv without its first argument.
template <class Bytes, class Transfer>
Status transfer_all(Bytes bytes, bool polling, const char* what, Transfer transfer) {
  const Nanos deadline = monotonic_now() + kSocketTimeoutSeconds * kSecond;
  while (!bytes.empty()) {
    const ssize_t count = transfer(bytes.data(), bytes.size(), polling ? MSG_DONTWAIT : 0);
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
    } else if (count == 0) {
      return unavailable("plain socket, {}: the other end is gone", what);
    } else if (errno != EINTR && !(polling && errno == EAGAIN)) {
      return socket_error(what);
    } else if (monotonic_now() >= deadline) {
      return make_status(StatusCode::kDeadlineExceeded, "plain socket, {}: no progress", what);
    }
  }
  return ok_status();
}

Status send_all(int fd, std::span<const std::byte> bytes, bool polling) {
  return transfer_all(bytes, polling, "send", [fd](const void* data, size_t size, int flags) {
    return ::send(fd, data, size, flags | MSG_NOSIGNAL);
  });
}
Status receive_all(int fd, std::span<std::byte> bytes, bool polling) {
  return transfer_all(bytes, polling, "recv", [fd](void* data, size_t size, int flags) {
    return ::recv(fd, data, size, flags);
  });
}

struct SocketPair {
  UniqueFd near, far;
};

Status set_up(int fd) {
  const int on = 1;
  const timeval timeout{.tv_sec = kSocketTimeoutSeconds, .tv_usec = 0};
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
      ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0 ||
      ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) != 0) {
    return socket_error("setsockopt");
  }
  return ok_status();
}

Result<SocketPair> loopback_pair() {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  socklen_t length = sizeof address;
  if (!listener || ::bind(listener.get(), any, length) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), any, &length) != 0) {
    return socket_error("listen");
  }
  SocketPair pair;
  pair.near = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!pair.near || ::connect(pair.near.get(), any, length) != 0) return socket_error("connect");
  pair.far = UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!pair.far) return socket_error("accept");
  VOLLEY_RETURN_IF_ERROR(set_up(pair.near.get()));
  VOLLEY_RETURN_IF_ERROR(set_up(pair.far.get()));
  return pair;
}

Result<double> socket_round_trip_seconds(uint64_t bytes, uint64_t answer_bytes, uint32_t far_core,
                                         bool polling) {
  VOLLEY_ASSIGN_OR_RETURN(SocketPair pair, loopback_pair());
  std::thread echo([&, far = pair.far.get()] {
    [[maybe_unused]] const Status pinned = pin_this_thread(far_core);
    std::vector<std::byte> rows(bytes);
    const std::vector<std::byte> answer(answer_bytes);
    // Ends when the near end is shut down.
    while (receive_all(far, rows, polling).ok() && send_all(far, answer, polling).ok()) {
    }
  });
  const std::vector<std::byte> rows(bytes);
  std::vector<std::byte> answer(answer_bytes);
  auto seconds = best_seconds([&] {
    VOLLEY_RETURN_IF_ERROR(send_all(pair.near.get(), rows, polling));
    return receive_all(pair.near.get(), answer, polling);
  });
  ::shutdown(pair.near.get(), SHUT_RDWR);
  echo.join();
  return seconds;
}

/// A stream of messages in one direction, with a byte back when the last is in.
Result<double> socket_stream_seconds(uint64_t bytes, uint32_t far_core, bool polling) {
  VOLLEY_ASSIGN_OR_RETURN(SocketPair pair, loopback_pair());
  const uint64_t messages = std::max<uint64_t>(4, (8 << 20) / bytes);
  std::thread sink([&, far = pair.far.get()] {
    [[maybe_unused]] const Status pinned = pin_this_thread(far_core);
    std::vector<std::byte> rows(bytes);
    const std::byte done{};
    while (true) {
      for (uint64_t i = 0; i < messages; ++i) {
        if (!receive_all(far, rows, polling).ok()) return;
      }
      if (!send_all(far, std::span(&done, 1), polling).ok()) return;
    }
  });
  const std::vector<std::byte> rows(bytes);
  std::byte done{};
  const auto seconds = best_seconds([&] {
    for (uint64_t i = 0; i < messages; ++i) {
      VOLLEY_RETURN_IF_ERROR(send_all(pair.near.get(), rows, polling));
    }
    return receive_all(pair.near.get(), std::span(&done, 1), polling);
  });
  ::shutdown(pair.near.get(), SHUT_RDWR);
  sink.join();
  if (!seconds.ok()) return seconds.status();
  return *seconds / static_cast<double>(messages);
}

Result<M2nSteps> measure(const M2nStepOptions& options) {
  VOLLEY_RETURN_IF_ERROR(pin_this_thread(options.near_core));
  const bool two_cores = options.near_core != options.far_core;
  M2nSteps steps;
  if (options.sockets) {
    // Blocking sockets do better where the other end needs the core, polling ones elsewhere.
    if (options.stream) {
      VOLLEY_ASSIGN_OR_RETURN(steps.plain_stream,
                              socket_stream_seconds(options.bytes, options.far_core, two_cores));
      return steps;
    }
    VOLLEY_ASSIGN_OR_RETURN(steps.plain_round_trip,
                            socket_round_trip_seconds(options.bytes, options.answer_bytes,
                                                      options.far_core, two_cores));
    return steps;
  }
  VOLLEY_ASSIGN_OR_RETURN(steps.copy_dispatch, copy_seconds(options.bytes));
  if (options.answer_bytes > 0) {
    VOLLEY_ASSIGN_OR_RETURN(steps.copy_answer, copy_seconds(options.answer_bytes));
  }
  if (two_cores && !options.stream) {
    VOLLEY_ASSIGN_OR_RETURN(
        steps.plain_round_trip,
        memory_round_trip_seconds(options.bytes, options.answer_bytes, options.far_core));
  }
  return steps;
}

}  // namespace

Result<M2nSteps> measure_m2n_steps(const M2nStepOptions& options) {
  // A thread of its own: the caller's affinity is inherited by the peers.
  Result<M2nSteps> steps = M2nSteps{};
  std::thread([&] { steps = measure(options); }).join();
  return steps;
}

}  // namespace volley::bench
