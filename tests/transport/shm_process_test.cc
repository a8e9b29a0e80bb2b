// Goal: on shm the death of a process is seen at once, and leaves nothing behind.
// Method: a forked child is one end (forked while this process has one thread) and is killed with
// SIGKILL.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "fabric_pair.h"
#include "volley/base/fd.h"

namespace volley::transport {
namespace {

std::set<std::string> names_in(const char* folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.insert(entry.path().filename());
  }
  return names;
}

size_t open_descriptors() {
  return names_in("/proc/self/fd").size();
}

bool socket_exists(const std::string& name) {
  std::ifstream sockets("/proc/net/unix");
  const std::string text((std::istreambuf_iterator<char>(sockets)),
                         std::istreambuf_iterator<char>());
  return text.find(name) != std::string::npos;
}

Node make(const FabricOptions& options) {
  auto fabric = make_fabric("shm", options);
  EXPECT_TRUE(fabric.ok()) << fabric.status();
  return {.options = options, .fabric = std::move(fabric).value(), .events = {}};
}

// Polls for ever; answers every dispatch in slot 0.
[[noreturn]] void serve(Node& node) {
  while (true) {
    node.poll();
    for (const FabricEvent& event : std::exchange(node.events, {})) {
      if (event.kind != EventKind::kMessage || event.slot != 0) continue;
      const auto header = node.fabric->recv_header(event.link, 0);
      fill(node.fabric->send_slot(event.link, 0), node.options.geometry.answer,
           make_header(node, event.link, 0, false, header.sequence, header.entry_count, 0));
      node.fabric->post(event.link, 0);
    }
    node.fabric->wait(monotonic_now() + kSecond);
  }
}

void kill_child(pid_t child) {
  ASSERT_EQ(::kill(child, SIGKILL), 0);
}
void reap_child(pid_t child) {
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
}

// Sleeps in wait() until kClosed.
void expect_closed_at_once(Node& node) {
  const Nanos start = monotonic_now();
  FabricEvent event;
  while (!node.take(EventKind::kClosed, event)) {
    ASSERT_LT(monotonic_now() - start, 2 * kSecond);
    node.fabric->wait(monotonic_now() + kSecond);
    node.poll();
  }
  EXPECT_EQ(event.code, StatusCode::kUnavailable);
  EXPECT_LT(monotonic_now() - start, 100 * kMillisecond);
}

TEST(ShmProcess, AKilledListenerIsSeenAtOnceAndLeavesNothing) {
  const auto shared_before = names_in("/dev/shm");
  const size_t descriptors_before = open_descriptors();
  {
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const UniqueFd from_child(pipe[0]);
    UniqueFd to_parent(pipe[1]);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Node expert = make(node_options("expert-0", "auto"));
      char address[64] = {};
      expert.fabric->address().copy(address, sizeof address - 1);
      if (::write(to_parent.get(), address, sizeof address) != sizeof address) ::_exit(1);
      serve(expert);
    }
    to_parent.reset();
    char address[64];
    ASSERT_EQ(::read(from_child.get(), address, sizeof address), ssize_t{sizeof address});
    Node attention = make(node_options("attention-0"));
    const LinkId link = attention.fabric->connect(address, kKey).value();
    pump_for({&attention}, attention, EventKind::kOpened);
    for (uint64_t sequence = 1; sequence <= 100; ++sequence) {
      fill(attention.fabric->send_slot(link, 0), attention.options.geometry.dispatch,
           make_header(attention, link, 0, true, sequence, 4, 6));
      attention.fabric->post(link, 0);
      pump_for({&attention}, attention, EventKind::kMessage);
      const auto& header = attention.fabric->recv_header(link, 0);
      ASSERT_EQ(header.sequence, sequence);
      const auto& layout = attention.options.geometry.answer;
      ASSERT_EQ(digest(attention.fabric->recv_slot(link, 0), layout, header),
                expected_digest(layout, header));
    }
    EXPECT_EQ(attention.fabric->counters().bytes_copied, 0u);
    EXPECT_TRUE(socket_exists(address));
    kill_child(child);
    expect_closed_at_once(attention);
    reap_child(child);
    EXPECT_FALSE(socket_exists(address));
  }
  EXPECT_EQ(names_in("/dev/shm"), shared_before);
  EXPECT_EQ(open_descriptors(), descriptors_before);
}

TEST(ShmProcess, AKilledConnectingNodeIsSeenAtOnceAndItsLastMessagesArrive) {
  const auto shared_before = names_in("/dev/shm");
  const size_t descriptors_before = open_descriptors();
  for (int life = 0; life < 3; ++life) {
    Node expert = make(node_options("expert-0", "auto"));
    const std::string address = expert.fabric->address();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Node attention = make(node_options("attention-0"));
      const LinkId link = attention.fabric->connect(address, kKey).value();
      pump_for({&attention}, attention, EventKind::kOpened);
      for (uint32_t slot = 1; slot < 4; ++slot) {
        fill(attention.fabric->send_slot(link, slot), attention.options.geometry.dispatch,
             make_header(attention, link, slot, true, slot, 4, 6));
        attention.fabric->post(link, slot);
      }
      serve(attention);
    }
    const LinkId link = pump_for({&expert}, expert, EventKind::kOpened).link;
    if (life > 0) {
      ASSERT_TRUE(pump({&expert}, [&] { return expert.events.size() == 3; }));
      kill_child(child);
      expect_closed_at_once(expert);
    } else {
      // Dead before we look: what it posted is still there, and comes first.
      const timespec nap{.tv_sec = 0, .tv_nsec = 30'000'000};
      ::nanosleep(&nap, nullptr);
      kill_child(child);
      reap_child(child);
      ASSERT_TRUE(pump({&expert}, [&] { return expert.events.size() == 4; }));
      EXPECT_EQ(expert.events[3].kind, EventKind::kClosed);
      expert.events.pop_back();
    }
    ASSERT_EQ(expert.events.size(), 3u);
    for (const FabricEvent& event : expert.events) {
      EXPECT_EQ(event.kind, EventKind::kMessage);
      EXPECT_EQ(event.link, link);
    }
    if (life > 0) reap_child(child);
  }
  EXPECT_EQ(names_in("/dev/shm"), shared_before);
  EXPECT_EQ(open_descriptors(), descriptors_before);
}

}  // namespace
}  // namespace volley::transport
