#include "message_buffers.h"

#include <algorithm>
#include <cstring>

namespace volley::benchmarks {

Result<MessageBuffers> MessageBuffers::create(const bench::M2nRun& run, uint32_t peer) {
  constexpr size_t kPageBytes = 4096;
  const bool sends = peer < run.shape.senders;
  MessageBuffers buffers;
  buffers.links_ = sends ? run.shape.receivers : run.shape.senders;
  buffers.slots_ = run.slots;
  buffers.receive_bytes_ = sends ? run.answer_bytes : run.shape.bytes;
  const size_t largest = std::max<size_t>({run.answer_bytes, run.shape.bytes, 1});
  buffers.stride_ = (largest + kPageBytes - 1) / kPageBytes * kPageBytes;
  VOLLEY_ASSIGN_OR_RETURN(buffers.memory_,
                          Mapping::allocate(2 * buffers.stride_ * buffers.links_ * buffers.slots_));
  std::memset(buffers.memory_.bytes().data(), 0, buffers.memory_.bytes().size());
  return buffers;
}

}  // namespace volley::benchmarks
