#pragma once

#include <cstdint>
#include <string>

#include "volley/base/status.h"

namespace volley::control {

/// The term of a controller that starts now, larger than that of any before it.
///
/// With a state directory (made when it is missing) the term is the one in its file `term`, plus
/// one; it is on the disk before this returns. Without the file, or with an empty `state_dir`, it
/// is the wall clock in seconds since the epoch, so that a lost directory does not take versions
/// back either. Blocks on the disk. Errors: kInvalidArgument (the directory cannot be made or
/// written: path and reason), kDataLoss (the file holds no term: path and content).
Result<uint32_t> take_next_term(const std::string& state_dir);

}  // namespace volley::control
