#include "volley/frontend/admission.h"

#include <algorithm>

#include "volley/base/check.h"

namespace volley::frontend {

Admission::Admission(uint32_t in_flight_max, uint32_t queue_max)
    : in_flight_max_(in_flight_max), queue_max_(queue_max) {
  VOLLEY_CHECK(in_flight_max > 0);
}

Admission::Decision Admission::arrive(RequestId id) {
  if (in_flight_ < in_flight_max_ && queue_.empty()) {
    ++in_flight_;
    return Decision::kRun;
  }
  if (queue_.size() >= queue_max_) return Decision::kFull;
  queue_.push_back(id);
  return Decision::kWait;
}

bool Admission::withdraw(RequestId id) {
  const auto found = std::find(queue_.begin(), queue_.end(), id);
  if (found == queue_.end()) return false;
  queue_.erase(found);
  return true;
}

void Admission::leave(Nanos duration) {
  VOLLEY_CHECK(in_flight_ > 0);
  --in_flight_;
  // About the last ten requests count.
  const double latest = static_cast<double>(duration);
  mean_duration_ = mean_duration_ == 0 ? latest : 0.9 * mean_duration_ + 0.1 * latest;
}

std::optional<RequestId> Admission::next() {
  if (queue_.empty() || in_flight_ >= in_flight_max_) return std::nullopt;
  const RequestId id = queue_.front();
  queue_.pop_front();
  ++in_flight_;
  return id;
}

Nanos Admission::retry_after() const {
  const double places = std::max(1.0, queue_max_ / 10.0);
  const double wait = mean_duration_ * places / in_flight_max_;
  return std::clamp(static_cast<Nanos>(wait), 100 * kMillisecond, 30 * kSecond);
}

}  // namespace volley::frontend
