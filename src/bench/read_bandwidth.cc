#include "read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>

#include "volley/base/check.h"
#include "volley/base/clock.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace volley::bench {
namespace {

std::atomic<uint64_t> sink;  // What was read, so that no read can be left out.

constexpr size_t kLineBytes = 64;
constexpr size_t kLines = 4;  // Per stream and step.
constexpr size_t kStepBytes = kLines * kLineBytes;
/// Tiles are pulled by the threads as they go, so that a thread that loses its core for a moment
/// holds up no other. One huge page.
constexpr size_t kTileBytes = size_t{2} << 20;

/// Reads `bytes`, a multiple of the streams' steps.
using ReadLoop = uint64_t (*)(const std::byte* data, size_t bytes);

template <size_t kStreams, size_t kAheadBytes>
uint64_t read_portable(const std::byte* data, size_t bytes) {
  const size_t part = bytes / kStreams;
  uint64_t sum[kStepBytes / 8] = {};
  for (size_t offset = 0; offset < part; offset += kStepBytes) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * part + offset;
      if constexpr (kAheadBytes > 0) {
        for (size_t i = 0; i < kLines; ++i) {
          __builtin_prefetch(from + kAheadBytes + i * kLineBytes);
        }
      }
      uint64_t words[kStepBytes / 8];
      std::memcpy(words, from, sizeof words);
      for (size_t i = 0; i < kStepBytes / 8; ++i) sum[i] += words[i];
    }
  }
  uint64_t total = 0;
  for (const uint64_t one : sum) total += one;
  return total;
}

#if defined(__x86_64__)

template <size_t kStreams, size_t kAheadBytes>
__attribute__((target("avx2"))) uint64_t read_avx2(const std::byte* data, size_t bytes) {
  const size_t part = bytes / kStreams;
  __m256i sum[2 * kLines];
#pragma GCC unroll 8
  for (__m256i& one : sum) one = _mm256_setzero_si256();
  for (size_t offset = 0; offset < part; offset += kStepBytes) {
#pragma GCC unroll 4
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * part + offset;
#pragma GCC unroll 4
      for (size_t i = 0; i < kLines; ++i) {
        if constexpr (kAheadBytes > 0) {
          __builtin_prefetch(from + kAheadBytes + i * kLineBytes);
        }
        const auto* line = reinterpret_cast<const __m256i*>(from + i * kLineBytes);
        sum[2 * i] = _mm256_add_epi64(sum[2 * i], _mm256_load_si256(line));
        sum[2 * i + 1] = _mm256_add_epi64(sum[2 * i + 1], _mm256_load_si256(line + 1));
      }
    }
  }
#pragma GCC unroll 8
  for (size_t i = 1; i < 2 * kLines; ++i) sum[0] = _mm256_add_epi64(sum[0], sum[i]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0));
}

template <size_t kStreams, size_t kAheadBytes>
__attribute__((target("avx512f"))) uint64_t read_avx512(const std::byte* data, size_t bytes) {
  const size_t part = bytes / kStreams;
  __m512i sum[kLines];
#pragma GCC unroll 4
  for (__m512i& one : sum) one = _mm512_setzero_si512();
  for (size_t offset = 0; offset < part; offset += kStepBytes) {
#pragma GCC unroll 4
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const std::byte* from = data + stream * part + offset;
#pragma GCC unroll 4
      for (size_t i = 0; i < kLines; ++i) {
        if constexpr (kAheadBytes > 0) {
          __builtin_prefetch(from + kAheadBytes + i * kLineBytes);
        }
        sum[i] = _mm512_add_epi64(sum[i], _mm512_load_si512(from + i * kLineBytes));
      }
    }
  }
#pragma GCC unroll 4
  for (size_t i = 1; i < kLines; ++i) sum[0] = _mm512_add_epi64(sum[0], sum[i]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sum[0]);
  return lanes[0];
}

#endif

// clang-format off
#define VOLLEY_READ_LOOPS(read)                                                      \
  {read<1, 0>, read<1, 512>, read<1, 1024>, read<1, 2048>, read<1, 4096>,            \
   read<2, 0>, read<2, 512>, read<2, 1024>, read<2, 2048>, read<2, 4096>,            \
   read<4, 0>, read<4, 512>, read<4, 1024>, read<4, 2048>, read<4, 4096>}
// clang-format on

/// The widest loads that this processor has. The first loop has one stream and no prefetch.
std::span<const ReadLoop> read_loops() {
#if defined(__x86_64__)
  static constexpr ReadLoop kAvx512[] = VOLLEY_READ_LOOPS(read_avx512);
  static constexpr ReadLoop kAvx2[] = VOLLEY_READ_LOOPS(read_avx2);
  if (__builtin_cpu_supports("avx512f")) return kAvx512;
  if (__builtin_cpu_supports("avx2")) return kAvx2;
#endif
  static constexpr ReadLoop kPortable[] = VOLLEY_READ_LOOPS(read_portable);
  return kPortable;
}

}  // namespace

double MemoryReader::read(size_t way, size_t first_tile, size_t tile_count) {
  const ReadLoop loop = read_loops()[way];
  const std::byte* const first = memory_.data() + first_tile * kTileBytes;
  const Nanos start = monotonic_now();
  pool_.parallel_for(static_cast<uint32_t>(tile_count), [&](uint32_t tile) {
    sink.store(loop(first + tile * kTileBytes, kTileBytes), std::memory_order_relaxed);
  });
  const double gbps =
      static_cast<double>(tile_count * kTileBytes) / static_cast<double>(monotonic_now() - start);
  if (gbps > best_gbps_) {
    best_gbps_ = gbps;
    best_way_ = way;
  }
  return gbps;
}

double MemoryReader::measure(double seconds) {
  const size_t tiles = memory_.size() / kTileBytes;
  VOLLEY_CHECK(tiles > 0);
  const Nanos end = monotonic_now() + static_cast<Nanos>(seconds * kSecond);
  double best = 0;
  do {
    for (size_t way = 0; way < read_loops().size(); ++way) {
      best = std::max(best, read(way, 0, tiles));
    }
  } while (monotonic_now() < end);
  return best;
}

double MemoryReader::measure_briefly(size_t bytes) {
  const size_t tiles = memory_.size() / kTileBytes;
  VOLLEY_CHECK(tiles > 0);
  const size_t count = std::clamp<size_t>(bytes / kTileBytes, 1, tiles);
  if (next_tile_ + count > tiles) next_tile_ = 0;
  const size_t first = std::exchange(next_tile_, next_tile_ + count);
  return read(best_way_, first, count);
}

double measure_cache_read(ThreadPool& pool, std::span<const std::byte> memory,
                          size_t bytes_per_thread, double seconds) {
  const uint32_t threads = pool.thread_count();
  const size_t bytes = bytes_per_thread / kStepBytes * kStepBytes;
  VOLLEY_CHECK(bytes > 0 && bytes * threads <= memory.size());
  // Long enough that starting the threads does not count: some 10 MB at 50 GB/s are 0.2 ms.
  const size_t passes = std::max<size_t>(1, (size_t{16} << 20) / bytes);
  const ReadLoop loop = read_loops().front();
  const Nanos end = monotonic_now() + static_cast<Nanos>(seconds * kSecond);
  double best = 0;
  Nanos now = monotonic_now();
  do {
    const Nanos start = now;
    pool.parallel_for(threads, [&](uint32_t tile) {
      for (size_t pass = 0; pass < passes; ++pass) {
        sink.store(loop(memory.data() + tile * bytes, bytes), std::memory_order_relaxed);
      }
    });
    now = monotonic_now();
    best = std::max(
        best, static_cast<double>(threads * passes * bytes) / static_cast<double>(now - start));
  } while (now < end);
  return best;
}

}  // namespace volley::bench
