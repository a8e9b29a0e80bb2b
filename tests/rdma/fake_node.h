#pragma once

// What tests of and over FakeVerbs share: a node with one of everything, and short requests.

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "rdma/fake_verbs.h"

namespace volley::rdma {

inline Gid gid_of(uint8_t node) {
  Gid gid{};
  gid[0] = 0xfd;
  gid[15] = node;
  return gid;
}

inline bool readable(int fd, int timeout_ms = 0) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, timeout_ms) == 1;
}

struct NodeOptions {
  uint32_t completions = 64;
  uint32_t receives = 16;
  size_t bytes = 8192;
  bool remote_write = true;
  uint16_t mtu = 256;
};

struct Node {
  Node(FakeNetwork& network, uint8_t id, const NodeOptions& options = {})
      : gid(gid_of(id)),
        device(
            network.open({.name = "fake_" + std::to_string(id), .gid = gid, .mtu = options.mtu})),
        memory(options.bytes),
        region(device->register_memory(memory, options.remote_write).value()),
        completions(device->create_completion_queue(options.completions).value()),
        receives(device->create_shared_receive_queue(options.receives).value()) {}

  std::unique_ptr<QueuePair> queue_pair(uint32_t sends = 16) {
    return device
        ->create_queue_pair({.sends = sends, .inline_bytes = 40}, *completions, receives.get())
        .value();
  }
  std::vector<Completion> poll(size_t count_max = 64) {
    std::vector<Completion> polled(count_max);
    Result<size_t> count = completions->poll(polled);
    EXPECT_TRUE(count.ok()) << count.status();
    polled.resize(count.ok() ? *count : 0);
    return polled;
  }
  void fill(size_t offset, size_t bytes, uint8_t value) {
    std::memset(memory.data() + offset, value, bytes);
  }
  size_t count(uint8_t value) const {
    return static_cast<size_t>(std::count(memory.begin(), memory.end(), std::byte{value}));
  }

  Gid gid;
  std::shared_ptr<Device> device;
  std::vector<std::byte> memory;
  std::unique_ptr<MemoryRegion> region;
  std::unique_ptr<CompletionQueue> completions;
  std::unique_ptr<SharedReceiveQueue> receives;
};

inline WriteRequest write(const Node& from, const Node& to, uint32_t bytes, uint32_t id = 0) {
  WriteRequest request;
  request.local = from.memory.data();
  request.bytes = bytes;
  request.lkey = from.region->lkey();
  request.remote_address = reinterpret_cast<uintptr_t>(to.memory.data());
  request.rkey = to.region->rkey();
  request.work = {.owner = id};
  request.signalled = true;
  return request;
}

inline WriteRequest message(const Node& from, const Node& to, uint32_t bytes, uint32_t immediate) {
  WriteRequest request = write(from, to, bytes, immediate);
  request.immediate = immediate;
  return request;
}

inline Status post(QueuePair& queue_pair, const WriteRequest& request) {
  return queue_pair.post({&request, 1});
}

inline void connect(QueuePair& a, QueuePair& b, const ConnectionOptions& options = {}) {
  ASSERT_TRUE(a.connect(b.endpoint(), options).ok());
  ASSERT_TRUE(b.connect(a.endpoint(), options).ok());
}

}  // namespace volley::rdma
