// UCX by its tagged API: a tag names the sending peer and the slot, and receives are posted ahead.

#include <ucp/api/ucp.h>

#include <cstdlib>

#include "baseline_main.h"
#include "message_buffers.h"

namespace volley::benchmarks {
namespace {

using bench::M2nArrival;
using bench::M2nEndpoint;
using bench::M2nRun;

Status check(ucs_status_t status, const char* what) {
  if (status == UCS_OK) return ok_status();
  return unavailable("{}: {}", what, ucs_status_string(status));
}

template <auto Destroy>
struct UcpDelete {
  template <class T>
  void operator()(T* object) const {
    Destroy(object);
  }
};
using Context = std::unique_ptr<ucp_context, UcpDelete<ucp_cleanup>>;
using Worker = std::unique_ptr<ucp_worker, UcpDelete<ucp_worker_destroy>>;

class UcxEndpoint final : public M2nEndpoint {
 public:
  static Result<std::unique_ptr<M2nEndpoint>> create(const M2nRun& run, uint32_t peer) {
    VOLLEY_ASSIGN_OR_RETURN(MessageBuffers buffers, MessageBuffers::create(run, peer));
    auto endpoint = std::unique_ptr<UcxEndpoint>(new UcxEndpoint(run, peer, std::move(buffers)));
    VOLLEY_RETURN_IF_ERROR(endpoint->open());
    return std::unique_ptr<M2nEndpoint>(std::move(endpoint));
  }
  ~UcxEndpoint() override {
    for (ucs_status_ptr_t request : sends_) finish(request);
    for (ucs_status_ptr_t request : receives_) {
      if (!UCS_PTR_IS_PTR(request)) continue;
      ucp_request_cancel(worker_.get(), request);
      finish(request);
    }
  }

  std::byte* send_buffer(uint32_t link, uint32_t slot) override {
    // The answer is in, so the send is over for the other side; this side may not know it yet.
    finish(sends_[buffers_.index(link, slot)]);
    return buffers_.send(link, slot);
  }

  Status post(uint32_t link, uint32_t slot, size_t bytes) override {
    const uint32_t index = buffers_.index(link, slot);
    finish(sends_[index]);
    VOLLEY_RETURN_IF_ERROR(receive(link, slot));
    const ucp_request_param_t param{};
    ucs_status_ptr_t request = ucp_tag_send_nbx(links_[link], buffers_.send(link, slot), bytes,
                                                tag_of(peer_, slot), &param);
    if (UCS_PTR_IS_ERR(request)) return check(UCS_PTR_STATUS(request), "ucp_tag_send_nbx");
    sends_[index] = request;
    return ok_status();
  }

  Status poll(std::vector<M2nArrival>& arrived) override {
    while (ucp_worker_progress(worker_.get()) != 0) {
    }
    for (uint32_t link = 0; link < buffers_.link_count(); ++link) {
      for (uint32_t slot = 0; slot < buffers_.slot_count(); ++slot) {
        VOLLEY_RETURN_IF_ERROR(take(link, slot, arrived));
      }
    }
    return ok_status();
  }

  void wait(Nanos) override {}

 private:
  UcxEndpoint(const M2nRun& run, uint32_t peer, MessageBuffers buffers)
      : run_(run),
        peer_(peer),
        buffers_(std::move(buffers)),
        sends_(size_t{buffers_.link_count()} * buffers_.slot_count()),
        receives_(sends_.size()) {}

  static ucp_tag_t tag_of(uint32_t peer, uint32_t slot) { return (ucp_tag_t{peer} << 32) | slot; }
  uint32_t peer_of(uint32_t link) const {
    return peer_ < run_.shape.senders ? run_.shape.senders + link : link;
  }

  Status open() {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_TAG;
    ucp_context_h context = nullptr;
    VOLLEY_RETURN_IF_ERROR(check(ucp_init(&params, nullptr, &context), "ucp_init"));
    context_.reset(context);
    ucp_worker_params_t worker_params{};
    worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
    ucp_worker_h worker = nullptr;
    VOLLEY_RETURN_IF_ERROR(
        check(ucp_worker_create(context, &worker_params, &worker), "ucp_worker_create"));
    worker_.reset(worker);
    ucp_address_t* address = nullptr;
    size_t bytes = 0;
    VOLLEY_RETURN_IF_ERROR(
        check(ucp_worker_get_address(worker, &address, &bytes), "ucp_worker_get_address"));
    const Status published =
        run_.publish(peer_, std::string_view(reinterpret_cast<const char*>(address), bytes));
    ucp_worker_release_address(worker, address);
    VOLLEY_RETURN_IF_ERROR(published);
    for (uint32_t link = 0; link < buffers_.link_count(); ++link) {
      VOLLEY_ASSIGN_OR_RETURN(const std::string remote, run_.address_of(peer_of(link)));
      ucp_ep_params_t ep_params{};
      ep_params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
      ep_params.address = reinterpret_cast<const ucp_address_t*>(remote.data());
      ucp_ep_h ep = nullptr;
      VOLLEY_RETURN_IF_ERROR(check(ucp_ep_create(worker, &ep_params, &ep), "ucp_ep_create"));
      links_.push_back(ep);
    }
    // The side that answers hears first.
    if (peer_ < run_.shape.senders) return ok_status();
    for (uint32_t link = 0; link < buffers_.link_count(); ++link) {
      for (uint32_t slot = 0; slot < buffers_.slot_count(); ++slot) {
        VOLLEY_RETURN_IF_ERROR(receive(link, slot));
      }
    }
    return ok_status();
  }

  Status receive(uint32_t link, uint32_t slot) {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    ucs_status_ptr_t request =
        ucp_tag_recv_nbx(worker_.get(), buffers_.receive(link, slot), buffers_.receive_bytes(),
                         tag_of(peer_of(link), slot), ~ucp_tag_t{0}, &param);
    if (UCS_PTR_IS_ERR(request)) return check(UCS_PTR_STATUS(request), "ucp_tag_recv_nbx");
    receives_[buffers_.index(link, slot)] = request;
    return ok_status();
  }

  Status take(uint32_t link, uint32_t slot, std::vector<M2nArrival>& arrived) {
    ucs_status_ptr_t& request = receives_[buffers_.index(link, slot)];
    if (request == nullptr) return ok_status();
    ucp_tag_recv_info_t info{};
    const ucs_status_t status = ucp_tag_recv_request_test(request, &info);
    if (status == UCS_INPROGRESS) return ok_status();
    ucp_request_free(request);
    request = nullptr;
    VOLLEY_RETURN_IF_ERROR(check(status, "receiving"));
    arrived.push_back(
        {.link = link, .slot = slot, .payload = {buffers_.receive(link, slot), info.length}});
    return ok_status();
  }

  void finish(ucs_status_ptr_t& request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    while (ucp_request_check_status(request) == UCS_INPROGRESS && run_.check().ok()) {
      ucp_worker_progress(worker_.get());
    }
    ucp_request_free(request);
    request = nullptr;
  }

  const M2nRun& run_;
  const uint32_t peer_;
  MessageBuffers buffers_;
  Context context_;
  Worker worker_;  // Ends with all its endpoints, before the context.
  std::vector<ucp_ep_h> links_;
  std::vector<ucs_status_ptr_t> sends_, receives_;  // [links][slots]
};

Result<bench::M2nSystem> make(const std::string& transport) {
  bench::M2nSystem system;
  system.name = "ucx-" + transport;
  // Who has set it knows better.
  ::setenv("UCX_TLS", transport == "shm" ? "posix,sysv,cma,self" : "tcp,self", 0);
  if (transport == "tcp") ::setenv("UCX_NET_DEVICES", "lo", 0);
  system.endpoint = UcxEndpoint::create;
  return system;
}

}  // namespace
}  // namespace volley::benchmarks

int main(int argc, char** argv) {
  return volley::benchmarks::run_baseline(argc, argv, "m2n_ucx", {"shm", "tcp"},
                                          volley::benchmarks::make);
}
