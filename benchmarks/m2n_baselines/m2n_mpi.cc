// MPI, started by mpirun with a process for every sender and receiver: MPI_Isend and MPI_Irecv as
// messages, or the whole exchange as two MPI_Alltoallv, dispatches and then answers.

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "baseline_main.h"
#include "message_buffers.h"
#include "volley/base/clock.h"

namespace volley::benchmarks {
namespace {

using bench::M2nArrival;
using bench::M2nEndpoint;
using bench::M2nRun;

// Errors of MPI end the program (MPI_ERRORS_ARE_FATAL), so that no result needs a look.

class MpiEndpoint final : public M2nEndpoint {
 public:
  static Result<std::unique_ptr<M2nEndpoint>> create(const M2nRun& run, uint32_t peer) {
    VOLLEY_ASSIGN_OR_RETURN(MessageBuffers buffers, MessageBuffers::create(run, peer));
    auto endpoint = std::unique_ptr<MpiEndpoint>(new MpiEndpoint(run, peer, std::move(buffers)));
    if (peer >= run.shape.senders) endpoint->receive_all();
    return std::unique_ptr<M2nEndpoint>(std::move(endpoint));
  }
  ~MpiEndpoint() override {
    for (MPI_Request& request : sends_) finish(request);
    for (MPI_Request& request : receives_) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      finish(request);
    }
  }

  std::byte* send_buffer(uint32_t link, uint32_t slot) override {
    // The answer is in, so the send is over for the other side; this side may not know it yet.
    finish(sends_[buffers_.index(link, slot)]);
    return buffers_.send(link, slot);
  }
  Status post(uint32_t link, uint32_t slot, size_t bytes) override {
    receive(link, slot);
    MPI_Isend(buffers_.send(link, slot), static_cast<int>(bytes), MPI_BYTE, rank_of(link),
              static_cast<int>(slot), MPI_COMM_WORLD, &sends_[buffers_.index(link, slot)]);
    return ok_status();
  }
  Status poll(std::vector<M2nArrival>& arrived) override {
    completed_.resize(receives_.size());
    statuses_.resize(receives_.size());
    int count = 0;
    MPI_Testsome(static_cast<int>(receives_.size()), receives_.data(), &count, completed_.data(),
                 statuses_.data());
    for (int i = 0; i < count; ++i) {  // None when count is MPI_UNDEFINED, which is negative.
      const auto index = static_cast<uint32_t>(completed_[static_cast<size_t>(i)]);
      const uint32_t link = index / buffers_.slot_count(), slot = index % buffers_.slot_count();
      int bytes = 0;
      MPI_Get_count(&statuses_[static_cast<size_t>(i)], MPI_BYTE, &bytes);
      arrived.push_back({.link = link,
                         .slot = slot,
                         .payload = {buffers_.receive(link, slot), static_cast<size_t>(bytes)}});
    }
    return ok_status();
  }
  void wait(Nanos) override {}

 private:
  MpiEndpoint(const M2nRun& run, uint32_t peer, MessageBuffers buffers)
      : run_(run),
        peer_(peer),
        buffers_(std::move(buffers)),
        sends_(size_t{buffers_.link_count()} * buffers_.slot_count(), MPI_REQUEST_NULL),
        receives_(sends_.size(), MPI_REQUEST_NULL) {}

  int rank_of(uint32_t link) const {
    return static_cast<int>(peer_ < run_.shape.senders ? run_.shape.senders + link : link);
  }
  void receive(uint32_t link, uint32_t slot) {
    MPI_Irecv(buffers_.receive(link, slot), static_cast<int>(buffers_.receive_bytes()), MPI_BYTE,
              rank_of(link), static_cast<int>(slot), MPI_COMM_WORLD,
              &receives_[buffers_.index(link, slot)]);
  }
  void receive_all() {
    for (uint32_t link = 0; link < buffers_.link_count(); ++link) {
      for (uint32_t slot = 0; slot < buffers_.slot_count(); ++slot) receive(link, slot);
    }
  }
  static void finish(MPI_Request& request) { MPI_Wait(&request, MPI_STATUS_IGNORE); }

  const M2nRun& run_;
  const uint32_t peer_;
  MessageBuffers buffers_;
  std::vector<MPI_Request> sends_, receives_;  // [links][slots]
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
};

/// One direction of the exchange: what each rank gives to and takes from every other.
struct Direction {
  std::vector<int> send_counts, send_offsets, receive_counts, receive_offsets;
  std::vector<std::byte> send, receive;

  Direction(const M2nRun& run, uint32_t self, bool dispatch) {
    const auto bytes = static_cast<int>(dispatch ? run.shape.bytes : run.answer_bytes);
    const auto is_source = [&](uint32_t rank) { return (rank < run.shape.senders) == dispatch; };
    for (uint32_t rank = 0; rank < run.peer_count(); ++rank) {
      const bool opposite = is_source(rank) != is_source(self);
      const int gives = opposite && is_source(self) ? bytes : 0;
      const int takes = opposite && !is_source(self) ? bytes : 0;
      send_offsets.push_back(static_cast<int>(send.size()));
      receive_offsets.push_back(static_cast<int>(receive.size()));
      send_counts.push_back(gives);
      receive_counts.push_back(takes);
      send.resize(send.size() + static_cast<size_t>(gives));
      receive.resize(receive.size() + static_cast<size_t>(takes));
    }
  }

  Status exchange(uint64_t sequence, std::span<const std::byte> rows, std::span<std::byte> out) {
    for (size_t rank = 0; rank < send_counts.size(); ++rank) {
      if (send_counts[rank] == 0) continue;
      bench::fill_m2n_payload(rows, sequence, send.data() + send_offsets[rank]);
    }
    MPI_Alltoallv(send.data(), send_counts.data(), send_offsets.data(), MPI_BYTE, receive.data(),
                  receive_counts.data(), receive_offsets.data(), MPI_BYTE, MPI_COMM_WORLD);
    for (size_t rank = 0; rank < receive_counts.size(); ++rank) {
      const auto bytes = static_cast<size_t>(receive_counts[rank]);
      if (bytes == 0) continue;
      VOLLEY_RETURN_IF_ERROR(bench::read_m2n_payload(
          {receive.data() + receive_offsets[rank], bytes}, bytes, sequence, out));
    }
    return ok_status();
  }
};

Status run_alltoallv(const M2nRun& run, uint32_t peer) {
  if (run.options.pattern != bench::M2nPattern::kRoundTrip) {
    return invalid_argument("alltoallv has no streams: --pattern must be round-trip");
  }
  Direction dispatch(run, peer, true), answer(run, peer, false);
  const std::vector<std::byte> rows(run.shape.bytes, std::byte{0x3c});
  const std::vector<std::byte> answer_rows(run.answer_bytes, std::byte{0x3c});
  std::vector<std::byte> out(std::max(run.shape.bytes, run.answer_bytes));
  Nanos start = 0, begin = 0;
  for (uint32_t round = 0; round < run.warmup + run.iterations; ++round) {
    if (round == run.warmup) start = begin = monotonic_now();
    VOLLEY_RETURN_IF_ERROR(dispatch.exchange(round, rows, out));
    VOLLEY_RETURN_IF_ERROR(answer.exchange(round, answer_rows, out));
    const Nanos now = monotonic_now();
    if (round >= run.warmup && peer < run.shape.senders) {
      run.samples_of(peer)[round - run.warmup] = static_cast<double>(now - begin) / kSecond;
    }
    begin = now;
  }
  if (peer < run.shape.senders) {
    run.control.elapsed_seconds[peer] = static_cast<double>(begin - start) / kSecond;
  }
  return ok_status();
}

/// Memory of rank 0 that all ranks map; they are processes of one host.
Result<std::span<std::byte>> share(size_t bytes) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Win window;  // Lives as long as the program: there are a few of them, one for each shape.
  std::byte* memory = nullptr;
  MPI_Win_allocate_shared(rank == 0 ? static_cast<MPI_Aint>(bytes) : 0, 1, MPI_INFO_NULL,
                          MPI_COMM_WORLD, static_cast<void*>(&memory), &window);
  MPI_Aint size = 0;
  int unit = 0;
  MPI_Win_shared_query(window, 0, &size, &unit, static_cast<void*>(&memory));
  if (rank == 0) std::memset(memory, 0, bytes);
  return std::span(memory, bytes);
}

Result<bench::M2nSystem> make(const std::string& transport) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  bench::M2nSystem system;
  system.name = "mpi-" + transport;
  system.world = std::make_unique<bench::M2nSystem::World>();
  system.world->self = static_cast<uint32_t>(rank);
  system.world->share = share;
  system.world->meet = [] { MPI_Barrier(MPI_COMM_WORLD); };
  if (transport == "alltoallv") {
    system.run_peer = run_alltoallv;
  } else {
    system.endpoint = MpiEndpoint::create;
  }
  return system;
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const int code = volley::benchmarks::run_baseline(
      argc, argv, "m2n_mpi", {"messages", "alltoallv"}, volley::benchmarks::make);
  // The others of a failed run wait for this process, and would wait for ever.
  if (code != 0) MPI_Abort(MPI_COMM_WORLD, code);
  MPI_Finalize();
  return code;
}
