// What the hardware and libibverbs give a program that does nothing else: RDMA WRITE WITH IMMEDIATE
// between two processes over one reliable connection. The yardstick of the rdma fabric; it shares
// no code with it. Start it without --connect on one side, then with it on the other, which decides
// what is run and prints the results. docs/benchmarks.md says how the numbers are used.

#include "endpoint.h"
#include "program.h"
#include "runs.h"

namespace raw_verbs {
namespace {

class VerbsSide final : public Side {
 public:
  VerbsSide(const EndpointOptions& options, const Area& area, Rendezvous& peer)
      : endpoint_(options, area) {
    endpoint_.connect(peer);
  }
  std::vector<int64_t> ping(const Plan& plan) override { return raw_verbs::ping(endpoint_, plan); }
  void pong(const Plan& plan) override { raw_verbs::pong(endpoint_, plan); }
  double stream(const Plan& plan) override { return raw_verbs::stream(endpoint_, plan); }
  void drain(const Plan& plan) override { raw_verbs::drain(endpoint_, plan); }
  nlohmann::json facts() const override {
    return {{"mtu_bytes", endpoint_.mtu_bytes()},
            {"inline_bytes_max", endpoint_.inline_bytes_max()}};
  }

 private:
  Endpoint endpoint_;
};

}  // namespace
}  // namespace raw_verbs

int main(int argc, char** argv) {
  using namespace raw_verbs;
  const Program program{
      .name = "raw_verbs",
      .description = "RDMA WRITE WITH IMMEDIATE between two processes, with nothing in between",
      .bare = true,
      .require_device = [](const EndpointOptions& o) { Endpoint::require_device(o.device); },
      .connect =
          [](const EndpointOptions& options, const Area& area, Rendezvous& peer,
             const std::string&) { return std::make_unique<VerbsSide>(options, area, peer); }};
  return run_program(program, argc, argv);
}
