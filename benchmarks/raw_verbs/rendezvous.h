#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace raw_verbs {

/// The TCP connection over which the two processes agree on what to do, swap the numbers of their
/// queue pairs, and wait for each other before and after a run. Nothing that is timed goes over it.
/// Every error, the end of the peer too, ends the program.
class Rendezvous {
 public:
  /// Waits for one peer on `port`, on every address.
  static Rendezvous accept(uint16_t port, double deadline_s);
  /// Tries until the peer listens, which may start later.
  static Rendezvous connect(const std::string& host, uint16_t port, double deadline_s);

  Rendezvous(Rendezvous&& other) noexcept;
  Rendezvous& operator=(Rendezvous&&) = delete;
  ~Rendezvous();

  /// Both processes are programs of one build on one architecture, so a struct travels as it lies.
  template <class T>
  void send(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    send_bytes(&value, sizeof value);
  }
  template <class T>
  T receive() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    receive_bytes(&value, sizeof value);
    return value;
  }
  template <class T>
  T swap(const T& mine) {
    send(mine);
    return receive<T>();
  }
  /// Returns when the peer is here too.
  void meet() { swap(uint8_t{1}); }

 private:
  explicit Rendezvous(int fd, double deadline_s);
  void send_bytes(const void* data, size_t bytes);
  void receive_bytes(void* data, size_t bytes);

  int fd_;
};

}  // namespace raw_verbs
