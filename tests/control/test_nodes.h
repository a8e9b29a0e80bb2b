#pragma once

#include <string>
#include <vector>

#include "volley/protocol/wire.h"
#include "volley/v1/control.pb.h"

namespace volley::control {

inline constexpr uint64_t kTestCheckpoint = 0xc0;

/// A registration that every check passes, for tests to spoil.
inline v1::NodeRegistration compute_node(v1::Role role, const std::string& name,
                                         uint64_t incarnation) {
  v1::NodeRegistration node;
  node.set_role(role);
  node.set_name(name);
  node.set_incarnation(incarnation);
  node.set_wire_version(protocol::kWireVersion);
  node.set_checkpoint_digest(kTestCheckpoint);
  node.set_numerics_fingerprint("avx2");
  node.set_fabric("shm");
  node.mutable_geometry()->set_micro_batches(2);
  node.mutable_geometry()->set_rows_max(64);
  node.mutable_geometry()->set_entries_max(128);
  node.mutable_geometry()->set_row_bytes(256);
  node.mutable_geometry()->set_answer_row_bytes(256);
  return node;
}

inline v1::NodeRegistration expert(const std::string& name, uint64_t incarnation,
                                   const std::vector<uint32_t>& experts) {
  v1::NodeRegistration node = compute_node(v1::ROLE_EXPERT, name, incarnation);
  node.set_fabric_address("/" + name);
  node.set_link_key(std::string(16, 'k'));
  node.mutable_experts()->Add(experts.begin(), experts.end());
  return node;
}

inline v1::NodeRegistration attention(const std::string& name, uint64_t incarnation,
                                      const std::string& grpc_address = "127.0.0.1:1") {
  v1::NodeRegistration node = compute_node(v1::ROLE_ATTENTION, name, incarnation);
  node.set_grpc_address(grpc_address);
  return node;
}

inline v1::NodeHealth health(bool ready) {
  v1::NodeHealth result;
  result.set_ready(ready);
  if (!ready) result.set_reason("loading");
  return result;
}

}  // namespace volley::control
