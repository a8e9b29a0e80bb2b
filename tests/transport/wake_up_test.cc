// Goal: an idle node hears a message soon, without spinning until it comes.
// Method: a thread waits on its fabric as an expert engine does; another one is silent for longer
// than any spin, then posts. The time from post() to the event is printed as a distribution, beside
// the same for two bare threads and a pipe, which is what this machine's kernel allows. Asserted
// are relations only: an idle node's share of a core, and that the waiter slept. Figures depend on
// the machine and its load.

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "transport/fabric_pair.h"

namespace volley::transport {
namespace {

constexpr int kMessages = 40;
constexpr Nanos kIdle = 55 * kMillisecond;

// GCC defines macros, clang answers __has_feature.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif
// An idle node may use this part of a core; instrumented code is several times slower.
constexpr Nanos kIdlePart = kSanitized ? 10 : 100;

Nanos cpu_time_of_this_thread() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return Nanos{time.tv_sec} * kSecond + time.tv_nsec;
}

void print(const std::string& what, std::vector<Nanos>& latency) {
  std::ranges::sort(latency);
  const auto at = [&](double share) {
    return static_cast<double>(latency[static_cast<size_t>(share * double(latency.size() - 1))]) /
           kMicrosecond;
  };
  std::printf("%-6s wake-up after %lld ms idle: median %.1f us, p90 %.1f us, p99 %.1f us\n",
              what.c_str(), static_cast<long long>(kIdle / kMillisecond), at(0.5), at(0.9),
              at(0.99));
}

/// Two threads and a pipe: a read that sleeps, a write, and nothing else.
std::vector<Nanos> pipe_latency() {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  std::vector<Nanos> latency;
  std::jthread reader([&] {
    Nanos sent = 0;
    while (::read(ends[0], &sent, sizeof sent) == sizeof sent) {
      latency.push_back(monotonic_now() - sent);
    }
  });
  for (int i = 0; i < kMessages; ++i) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(kIdle));
    const Nanos sent = monotonic_now();
    EXPECT_EQ(::write(ends[1], &sent, sizeof sent), static_cast<ssize_t>(sizeof sent));
  }
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  return latency;
}

class WakeUp : public testing::TestWithParam<const char*> {};

TEST_P(WakeUp, IsSoonAndCostsNothingWhileIdle) {
  const std::string kind = GetParam();
  Node expert, attention;
  expert.options = node_options("expert", kind == "tcp" ? "127.0.0.1:0" : "auto");
  attention.options = node_options("attention");
  for (Node* node : {&expert, &attention}) {
    auto fabric = make_fabric(kind, node->options);
    ASSERT_TRUE(fabric.ok()) << fabric.status();
    node->fabric = std::move(*fabric);
  }
  const auto link = attention.fabric->connect(expert.fabric->address(), kKey);
  ASSERT_TRUE(link.ok()) << link.status();
  pump_for({&attention, &expert}, attention, EventKind::kOpened);
  const LinkId back = pump_for({&attention, &expert}, expert, EventKind::kOpened).link;

  std::atomic<Nanos> posted{0};
  std::vector<Nanos> latency;
  Nanos used = 0, elapsed = 0;
  std::jthread engine([&](std::stop_token stop) {
    const Nanos begin = monotonic_now(), used_before = cpu_time_of_this_thread();
    while (latency.size() < kMessages && !stop.stop_requested()) {
      FabricEvent events[8];
      const size_t count = expert.fabric->poll(events);
      for (size_t i = 0; i < count; ++i) {
        if (events[i].kind != EventKind::kMessage) continue;
        latency.push_back(monotonic_now() - posted.load());
        // The answer, which is the credit for the next message.
        protocol::MessageHeader header = expert.fabric->recv_header(back, events[i].slot);
        header.kind = protocol::MessageKind::kAnswer;
        header.incarnation = expert.options.self.incarnation.value;
        header.row_count = header.entry_count;
        header.entry_count = 0;
        header.row_bytes = expert.options.geometry.answer.row_bytes;
        protocol::header_of(expert.fabric->send_slot(back, events[i].slot)) = header;
        expert.fabric->post(back, events[i].slot);
      }
      if (count == 0) expert.fabric->wait(monotonic_now() + 100 * kMillisecond);
    }
    elapsed = monotonic_now() - begin;
    used = cpu_time_of_this_thread() - used_before;
  });
  bool answered = true;
  for (int i = 0; i < kMessages && answered; ++i) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(kIdle));
    fill(attention.fabric->send_slot(*link, 0), attention.options.geometry.dispatch,
         make_header(attention, *link, 0, true, static_cast<uint64_t>(i) + 1, 4, 4));
    posted = monotonic_now();
    attention.fabric->post(*link, 0);
    FabricEvent event;
    answered = pump({&attention}, [&] { return attention.take(EventKind::kMessage, event); });
  }
  ASSERT_TRUE(answered);
  engine.join();
  print(kind, latency);
  std::printf("%-6s idle node: %.3f %% of a core\n", kind.c_str(),
              100.0 * static_cast<double>(used) / static_cast<double>(elapsed));
  EXPECT_LT(used, elapsed / kIdlePart);
  // Far from any good figure: a wake-up that waits for a timeout in place of a message would show.
  EXPECT_LT(latency[latency.size() / 2], 20 * kMillisecond);
}

INSTANTIATE_TEST_SUITE_P(Fabrics, WakeUp, testing::Values("shm", "tcp"),
                         [](const auto& fabric) { return std::string(fabric.param); });

TEST(KernelWakeUp, OfTwoThreadsAndAPipe) {
  std::vector<Nanos> latency = pipe_latency();
  ASSERT_EQ(latency.size(), static_cast<size_t>(kMessages));
  print("pipe", latency);
  EXPECT_GT(latency.front(), 0);
}

}  // namespace
}  // namespace volley::transport
