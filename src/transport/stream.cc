#include "stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "volley/base/check.h"

namespace volley::transport {
namespace {

// Moves the start of the buffers by `bytes`; returns what is left over after them.
size_t consume(std::array<iovec, 2>& parts, size_t bytes) {
  for (iovec& part : parts) {
    const size_t taken = std::min(bytes, part.iov_len);
    part.iov_base = static_cast<std::byte*>(part.iov_base) + taken;
    part.iov_len -= taken;
    bytes -= taken;
  }
  return bytes;
}

}  // namespace

void StreamParser::open(Inbox* inbox, std::byte* slots) {
  inbox_ = inbox;
  slots_ = slots;
  in_message_ = false;
  payload_ = {};
  ahead_begin_ = ahead_end_ = 0;
  bytes_copied_ = 0;
}

size_t StreamParser::buffers(Buffers& out) {
  size_t count = 0;
  for (const iovec& part : payload_) {
    if (part.iov_len > 0) out[count++] = part;
  }
  // At most the beginning of a header.
  const size_t kept = ahead_end_ - ahead_begin_;
  std::memmove(ahead_.data(), ahead_.data() + ahead_begin_, kept);
  ahead_begin_ = 0;
  ahead_end_ = kept;
  out[count++] = {ahead_.data() + kept, ahead_.size() - kept};
  return count;
}

Result<StreamParser::Progress> StreamParser::advance(size_t received) {
  ahead_end_ += consume(payload_, received);
  VOLLEY_CHECK(ahead_end_ <= ahead_.size());
  while (true) {
    if (in_message_) {
      take_ahead();
      if (payload_[0].iov_len + payload_[1].iov_len > 0) return Progress::kPartial;
      in_message_ = false;
      return Progress::kMessage;
    }
    if (ahead_end_ - ahead_begin_ < sizeof(protocol::MessageHeader)) return Progress::kPartial;
    VOLLEY_ASSIGN_OR_RETURN(const Progress progress, accept_header());
    if (progress != Progress::kPartial) return progress;
  }
}

void StreamParser::take_ahead() {
  for (iovec& part : payload_) {
    const size_t bytes = std::min(part.iov_len, ahead_end_ - ahead_begin_);
    if (bytes == 0) continue;
    std::memcpy(part.iov_base, ahead_.data() + ahead_begin_, bytes);
    ahead_begin_ += bytes;
    bytes_copied_ += bytes;
    part.iov_base = static_cast<std::byte*>(part.iov_base) + bytes;
    part.iov_len -= bytes;
  }
}

Result<StreamParser::Progress> StreamParser::accept_header() {
  Heartbeat heartbeat;
  std::memcpy(&heartbeat, ahead_.data() + ahead_begin_, sizeof heartbeat);
  if (heartbeat.magic == kHeartbeatMagic) {
    const Heartbeat allowed{.incarnation = inbox_->expected().incarnation};
    if (std::memcmp(&heartbeat, &allowed, sizeof allowed) != 0) {
      return data_loss("a heartbeat has a wrong version, incarnation or reserved field");
    }
    ahead_begin_ += sizeof heartbeat;
    return Progress::kHeartbeat;
  }
  protocol::MessageHeader header;
  std::memcpy(&header, ahead_.data() + ahead_begin_, sizeof header);
  const protocol::Expectation& expected = inbox_->expected();
  if (header.slot >= 2 * expected.micro_batches) {
    return data_loss("header.slot is {}, allowed: below {}", header.slot,
                     2 * expected.micro_batches);
  }
  VOLLEY_RETURN_IF_ERROR(inbox_->admit(header, header.slot));
  slot_ = header.slot;
  const protocol::SlotLayout& layout = expected.layout;
  std::byte* slot = slots_ + slot_ * layout.slot_bytes();
  std::memcpy(slot, &header, sizeof header);
  payload_[0] = {slot + layout.entries_offset(), layout.entries_bytes(header.entry_count)};
  payload_[1] = {slot + layout.rows_offset(), size_t{header.row_count} * layout.row_bytes};
  ahead_begin_ += sizeof header;
  in_message_ = true;
  return Progress::kPartial;
}

void StreamWriter::open(int fd, uint64_t incarnation, Waiter* waiter, uint64_t tag) {
  const std::lock_guard lock(mutex_);
  fd_ = fd;
  waiter_ = waiter;
  tag_ = tag;
  waiting_ = false;
  heartbeat_.incarnation = incarnation;
  first_ = count_ = 0;
}

void StreamWriter::close() {
  const std::lock_guard lock(mutex_);
  fd_ = -1;
  count_ = 0;
}

void StreamWriter::post(const Frame& frame) {
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) return;
  VOLLEY_CHECK(count_ < kQueueMax);  // The engine posted a slot again before its answer.
  queue_[(first_ + count_++) % kQueueMax] = frame;
  if (!waiting_) send_queue();
}

void StreamWriter::flush() {
  const std::lock_guard lock(mutex_);
  if (fd_ >= 0) send_queue();
}

void StreamWriter::pulse() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || fd_ < 0 || count_ > 0) return;
  queue_[first_] = {.parts = {iovec{&heartbeat_, sizeof heartbeat_}, iovec{}}};
  count_ = 1;
  send_queue();
}

void StreamWriter::send_queue() {
  while (count_ > 0) {
    constexpr size_t kFramesAtOnce = 8;
    std::array<iovec, 2 * kFramesAtOnce> parts;
    msghdr message{};
    message.msg_iov = parts.data();
    for (size_t i = 0; i < std::min(count_, kFramesAtOnce); ++i) {
      for (const iovec& part : queue_[(first_ + i) % kQueueMax].parts) {
        if (part.iov_len > 0) parts[message.msg_iovlen++] = part;
      }
    }
    const ssize_t sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      consume_queue(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      return want_writable(true);
    } else if (errno != EINTR) {
      ::shutdown(fd_, SHUT_RDWR);
      count_ = 0;
      want_writable(false);
      fd_ = -1;
      return;
    }
  }
  want_writable(false);
}

void StreamWriter::consume_queue(size_t bytes) {
  while (count_ > 0) {
    std::array<iovec, 2>& frame = queue_[first_].parts;
    bytes = consume(frame, bytes);
    if (frame[0].iov_len + frame[1].iov_len > 0) return;
    first_ = (first_ + 1) % kQueueMax;
    --count_;
  }
}

void StreamWriter::want_writable(bool want) {
  if (waiting_ == want) return;
  waiting_ = want;
  waiter_->modify(fd_, want ? EPOLLIN | EPOLLOUT : EPOLLIN, tag_);
}

}  // namespace volley::transport
