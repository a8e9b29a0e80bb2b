#include "inbox.h"

namespace volley::transport {

Status Inbox::admit(const protocol::MessageHeader& header, uint32_t slot) {
  protocol::Expectation expected = expected_;
  expected.slot = slot;
  VOLLEY_RETURN_IF_ERROR(protocol::validate_header(header, expected));
  if ((credit_ & (1u << slot)) == 0) {
    return data_loss("slot {} got sequence {} before its last message was answered", slot,
                     header.sequence);
  }
  credit_ &= ~(1u << slot);
  headers_[slot] = header;
  return ok_status();
}

}  // namespace volley::transport
