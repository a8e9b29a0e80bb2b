// Goal: no device file crashes or hangs the reader, what it accepts has rates that can be divided
// by, and what it accepts is written as a file that reads back equal.

#include <cstdlib>
#include <string>

#include "volley/perf/device.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley::perf;
  const auto device =
      parse_device(std::string(reinterpret_cast<const char*>(data), size), "fuzz.yaml");
  if (!device.ok()) return 0;
  const bool sound = device->memory_bytes_per_s > 0 && device->network_bytes_per_s > 0 &&
                     device->flops_of(NumberFormat::kF32) > 0 && device->per_node >= 1 &&
                     device->efficiency.compute.at(1) > 0 && device->efficiency.network.at(1e9) > 0;
  if (!sound) std::abort();
  const auto back = parse_device(format_device(*device, "fuzz"), "back.yaml");
  if (!back.ok() || !(*back == *device)) std::abort();
  return 0;
}
