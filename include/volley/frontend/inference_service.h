#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "volley/base/ids.h"
#include "volley/base/status.h"
#include "volley/control/credentials.h"
#include "volley/frontend/request.h"
#include "volley/model/tokenizer.h"
#include "volley/v1/control.pb.h"

namespace volley::frontend {

struct FrontendOptions {
  uint32_t in_flight_max = 256;
  uint32_t queue_max = 1024;
  /// Of requests whose caller sets none, and the longest that a caller may set.
  Nanos default_deadline = 600 * kSecond;
  /// Chunks of one stream that wait for a slow client before the attention node is read no further.
  uint32_t chunks_waiting_max = 16;
  control::SecurityConfig security{};  ///< Of the channels to the attention nodes.
};

struct FrontendStats {
  uint32_t in_flight = 0;
  uint32_t waiting = 0;
  uint64_t succeeded = 0;
  uint64_t refused = 0;  ///< Invalid or not admitted.
  uint64_t failed = 0;   ///< Admitted, and ended with another status than OK.
};

/// The public API over the attention nodes: checks, tokenizes, admits, routes, and gives back text.
///
/// A request ends with exactly one status. It is in flight from its admission until both its call
/// to the attention node and its call from the client have ended, so nothing is left anywhere when
/// the count is zero.
///
/// Threads: none of its own; handlers run on gRPC's threads. All methods may be called from any
/// thread. Destroy it after the server it is registered with has been shut down and wait_idle() was
/// true.
class InferenceService {
 public:
  InferenceService(FrontendOptions options, ModelInfo model, GenerationDefaults defaults,
                   std::shared_ptr<const model::Tokenizer> tokenizer);
  ~InferenceService();

  grpc::Service* service();

  /// The cluster has changed, or its health. What runs on nodes that are gone ends with
  /// UNAVAILABLE. Must be called from one thread at a time.
  void update_view(const v1::ClusterView& view);
  /// Why no request could be served now; empty when one could.
  std::string not_serving_reason() const;
  /// Called now and after each update_view() and close(), one call at a time; null ends it. The
  /// callback must not call this object.
  void on_serving_changed(std::function<void(bool serving)> callback);

  FrontendStats stats() const;

  /// Refuses new requests from now on; those that run or wait go on.
  void close();
  /// Waits until no request is left; false at the timeout.
  bool wait_idle(Nanos timeout);
  /// Ends all requests with UNAVAILABLE.
  void cancel_all(const std::string& why);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::frontend
