// gRPC: a bidirectional stream of bytes for every link, by the generic API, so that no message is
// encoded. Sending copies a payload into a slice and receiving out of one: a serialized
// message with a bytes field does no less.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cstring>
#include <deque>
#include <utility>

#include "baseline_main.h"
#include "message_buffers.h"
#include "volley/base/clock.h"

namespace volley::benchmarks {
namespace {

using bench::M2nArrival;
using bench::M2nEndpoint;
using bench::M2nRun;

constexpr const char* kMethod = "/volley.benchmarks.M2n/Exchange";
constexpr const char* kPeerKey = "peer";

// One operation on a completion queue: a link and what it did. The pointer is the tag.
enum class Kind { kStart, kRead, kWrite };
struct Operation {
  uint32_t link = 0;
  Kind kind = Kind::kStart;
};

/// What a message carries before its payload.
struct Prefix {
  uint32_t slot = 0;
  uint32_t reserved = 0;
};

class GrpcEndpoint final : public M2nEndpoint {
 public:
  static Result<std::unique_ptr<M2nEndpoint>> create(const M2nRun& run, uint32_t peer) {
    VOLLEY_ASSIGN_OR_RETURN(MessageBuffers buffers, MessageBuffers::create(run, peer));
    auto endpoint = std::unique_ptr<GrpcEndpoint>(new GrpcEndpoint(run, peer, std::move(buffers)));
    VOLLEY_RETURN_IF_ERROR(peer < run.shape.senders ? endpoint->connect() : endpoint->listen());
    return std::unique_ptr<M2nEndpoint>(std::move(endpoint));
  }
  ~GrpcEndpoint() override {
    for (Link& link : links_) {
      if (link.client_context) link.client_context->TryCancel();
    }
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
    queue_->Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_->Next(&tag, &ok)) {
    }
  }

  std::byte* send_buffer(uint32_t link, uint32_t slot) override {
    return buffers_.send(link, slot);
  }
  Status post(uint32_t link, uint32_t slot, size_t bytes) override {
    const Prefix prefix{.slot = slot};
    grpc::Slice head(&prefix, sizeof prefix);
    grpc::Slice slices[] = {head, grpc::Slice(buffers_.send(link, slot), bytes)};
    Link& to = links_[place_of_[link]];
    to.outbox.emplace_back(slices, bytes > 0 ? 2 : 1);
    write_next(to);
    return ok_status();
  }
  Status poll(std::vector<M2nArrival>& arrived) override { return take(arrived, 0); }
  void wait(Nanos deadline) override {
    wait_time_ = std::max<Nanos>(0, deadline - monotonic_now());
  }

 private:
  using ClientStream = grpc::GenericClientAsyncReaderWriter;
  struct Link {
    std::unique_ptr<grpc::ClientContext> client_context;
    std::unique_ptr<ClientStream> client;
    std::unique_ptr<grpc::GenericServerContext> server_context;
    std::unique_ptr<grpc::GenericServerAsyncReaderWriter> server;
    uint32_t index = 0;  // Of the peer at the other end.
    grpc::ByteBuffer inbox;
    std::deque<grpc::ByteBuffer> outbox;
    bool writing = false;
    Operation start, read, write;
  };

  GrpcEndpoint(const M2nRun& run, uint32_t peer, MessageBuffers buffers)
      : run_(run), peer_(peer), buffers_(std::move(buffers)), links_(buffers_.link_count()) {
    for (uint32_t i = 0; i < links_.size(); ++i) {
      links_[i].index = place_of_[i] = i;
      links_[i].start = {i, Kind::kStart};
      links_[i].read = {i, Kind::kRead};
      links_[i].write = {i, Kind::kWrite};
    }
  }

  Status listen() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterAsyncGenericService(&service_);
    builder.SetMaxReceiveMessageSize(-1);
    auto queue = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    if (!server_ || port == 0) return unavailable("the gRPC server does not start");
    server_queue_ = queue.get();
    queue_ = std::move(queue);
    for (Link& link : links_) {
      link.server_context = std::make_unique<grpc::GenericServerContext>();
      link.server =
          std::make_unique<grpc::GenericServerAsyncReaderWriter>(link.server_context.get());
      service_.RequestCall(link.server_context.get(), link.server.get(), queue_.get(),
                           server_queue_, &link.start);
    }
    return run_.publish(peer_, fmt::format("127.0.0.1:{}", port));
  }

  Status connect() {
    queue_ = std::make_unique<grpc::CompletionQueue>();
    for (Link& link : links_) {
      VOLLEY_ASSIGN_OR_RETURN(const std::string address,
                              run_.address_of(run_.shape.senders + link.index));
      grpc::ChannelArguments arguments;
      arguments.SetMaxReceiveMessageSize(-1);
      link.client_context = std::make_unique<grpc::ClientContext>();
      link.client_context->AddMetadata(kPeerKey, std::to_string(peer_));
      grpc::GenericStub stub(
          grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
      link.client = stub.PrepareCall(link.client_context.get(), kMethod, queue_.get());
      link.client->StartCall(&link.start);
    }
    std::vector<M2nArrival> none;
    while (opened_ < links_.size()) {
      VOLLEY_RETURN_IF_ERROR(take(none, kMillisecond));
      VOLLEY_RETURN_IF_ERROR(run_.check());
    }
    return ok_status();
  }

  /// Calls come in any order: the number of the caller says which link is which.
  Status identify(Link& link) {
    if (peer_ < run_.shape.senders) return ok_status();
    const auto& metadata = link.server_context->client_metadata();
    const auto found = metadata.find(kPeerKey);
    if (found == metadata.end()) return data_loss("a call without the number of its sender");
    const unsigned long index = std::stoul(std::string(found->second.data(), found->second.size()));
    if (index >= place_of_.size()) return data_loss("a call of sender {}", index);
    place_of_[index] = link.start.link;
    link.index = static_cast<uint32_t>(index);
    return ok_status();
  }

  Status take(std::vector<M2nArrival>& arrived, Nanos timeout) {
    timeout = std::max(timeout, std::exchange(wait_time_, 0));
    while (true) {
      void* tag = nullptr;
      bool ok = false;
      const auto deadline = timeout > 0 ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                                       gpr_time_from_nanos(timeout, GPR_TIMESPAN))
                                        : gpr_time_0(GPR_CLOCK_MONOTONIC);
      const auto next = queue_->AsyncNext(&tag, &ok, deadline);
      if (next != grpc::CompletionQueue::GOT_EVENT) return ok_status();
      timeout = 0;
      VOLLEY_RETURN_IF_ERROR(handle(*static_cast<Operation*>(tag), ok, arrived));
    }
  }

  Status handle(const Operation& operation, bool ok, std::vector<M2nArrival>& arrived) {
    Link& link = links_[operation.link];
    if (!ok) {
      // A sender that is done hangs up.
      if (peer_ >= run_.shape.senders) return ok_status();
      return unavailable("the call to receiver-{} ended", link.index);
    }
    if (operation.kind == Kind::kWrite) {
      link.writing = false;
      link.outbox.pop_front();
      write_next(link);
      return ok_status();
    }
    if (operation.kind == Kind::kStart) {
      VOLLEY_RETURN_IF_ERROR(identify(link));
      ++opened_;
    } else {
      VOLLEY_RETURN_IF_ERROR(unpack(link, arrived));
    }
    link.client ? link.client->Read(&link.inbox, &link.read)
                : link.server->Read(&link.inbox, &link.read);
    return ok_status();
  }

  Status unpack(Link& link, std::vector<M2nArrival>& arrived) {
    std::vector<grpc::Slice> slices;
    if (!link.inbox.Dump(&slices).ok()) return data_loss("a message cannot be read");
    std::byte head[sizeof(Prefix)];
    Prefix prefix;
    size_t offset = 0;
    for (const grpc::Slice& slice : slices) {
      const auto* from = reinterpret_cast<const std::byte*>(slice.begin());
      size_t left = slice.size();
      if (offset < sizeof head) {
        const size_t part = std::min(left, sizeof head - offset);
        std::memcpy(head + offset, from, part);
        from += part;
        left -= part;
        offset += part;
        if (offset == sizeof head) std::memcpy(&prefix, head, sizeof prefix);
      }
      if (left == 0) continue;
      if (prefix.slot >= buffers_.slot_count() ||
          offset - sizeof head + left > buffers_.receive_bytes()) {
        return data_loss("a message that fits in no buffer");
      }
      std::memcpy(buffers_.receive(link.index, prefix.slot) + (offset - sizeof head), from, left);
      offset += left;
    }
    if (offset < sizeof head) return data_loss("a message of {} bytes", offset);
    arrived.push_back(
        {.link = link.index,
         .slot = prefix.slot,
         .payload = {buffers_.receive(link.index, prefix.slot), offset - sizeof head}});
    return ok_status();
  }

  void write_next(Link& link) {
    if (link.writing || link.outbox.empty()) return;
    link.writing = true;
    link.client ? link.client->Write(link.outbox.front(), &link.write)
                : link.server->Write(link.outbox.front(), &link.write);
  }

  const M2nRun& run_;
  const uint32_t peer_;
  MessageBuffers buffers_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::CompletionQueue> queue_;
  grpc::ServerCompletionQueue* server_queue_ = nullptr;  // queue_ of a receiver.
  std::vector<Link> links_;
  std::vector<uint32_t> place_of_ = std::vector<uint32_t>(bench::kM2nPeersMax);
  size_t opened_ = 0;
  Nanos wait_time_ = 0;
};

Result<bench::M2nSystem> make(const std::string&) {
  bench::M2nSystem system;
  system.name = "grpc";
  system.endpoint = GrpcEndpoint::create;
  return system;
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  return volley::benchmarks::run_baseline(argc, argv, "m2n_grpc", {"tcp"},
                                          volley::benchmarks::make);
}
