#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace volley {

/// An integer that names one kind of thing and does not convert to another kind.
template <class Tag, class Value = uint32_t>
struct Id {
  Value value = 0;
  auto operator<=>(const Id&) const = default;
};

using ExpertId = Id<struct ExpertTag>;
/// A link of one node: names the pair (this node, one peer incarnation) inside this process.
using LinkId = Id<struct LinkTag>;
/// A sequence (one request being generated) on one attention node, never reused in a process.
using SequenceId = Id<struct SequenceTag, uint64_t>;
/// A number that a process draws at start; two lives of one node never share it.
using Incarnation = Id<struct IncarnationTag, uint64_t>;

/// Monotonic time in nanoseconds. Pure machines get it as an argument and never read a clock.
using Nanos = int64_t;
inline constexpr Nanos kMicrosecond = 1'000;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;

}  // namespace volley

template <class Tag, class Value>
struct std::hash<volley::Id<Tag, Value>> {
  size_t operator()(const volley::Id<Tag, Value>& id) const { return std::hash<Value>()(id.value); }
};
