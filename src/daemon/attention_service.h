#pragma once

// Joins the AttentionNode gRPC service to the engine: one reactor per sequence.

#include <grpcpp/grpcpp.h>

#include "volley/engine/attention_engine.h"
#include "volley/v1/node.grpc.pb.h"

namespace volley::daemon {

class AttentionService final : public v1::AttentionNode::CallbackService {
 public:
  /// The engine must outlive the server that this service is registered with.
  explicit AttentionService(engine::AttentionEngine& engine) : engine_(engine) {}

  grpc::ServerWriteReactor<v1::RunChunk>* Run(grpc::CallbackServerContext* context,
                                              const v1::RunRequest* request) override;

 private:
  engine::AttentionEngine& engine_;
};

}  // namespace volley::daemon
