#pragma once

#include "volley/base/clock.h"

namespace volley::engine {

/// The loop of an engine in single turns, so that one thread can drive one engine or two.
class EngineLoop {
 public:
  struct Turn {
    enum class Kind : uint8_t {
      kWorked,   ///< It computed; there may be more.
      kNothing,  ///< Nothing to do before `wake_at`, a message or a command.
      kEnded,    ///< The engine has stopped: finish() is next.
    };
    Kind kind = Kind::kNothing;
    Nanos wake_at = 0;
  };

  virtual ~EngineLoop() = default;
  /// On the engine thread, before the first turn.
  virtual void begin() = 0;
  /// Handles what has arrived and computes at most one thing. Does not block.
  virtual Turn turn() = 0;
  /// Sleeps until a message, a command, or `until`.
  virtual void wait(Nanos until) = 0;
  /// The time since the last turn was not the engine's own: it goes to the profile as waiting.
  virtual void rested() = 0;
  virtual void finish() = 0;
  /// It has an open link.
  virtual bool linked() const = 0;

  /// Drives this engine alone.
  void run() {
    begin();
    while (true) {
      const Turn last = turn();
      if (last.kind == Turn::Kind::kEnded) break;
      if (last.kind == Turn::Kind::kWorked) continue;
      wait(last.wake_at);
      rested();
    }
    finish();
  }
};

}  // namespace volley::engine
