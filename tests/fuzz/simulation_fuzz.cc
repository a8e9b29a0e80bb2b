// Goal: no simulation file, request file or change crashes or hangs its reader, and what is accepted
// is within the documented ranges.

#include <cstdlib>
#include <string>

#include "volley/simulation/simulation_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  // A folder that is not there: names are looked up in vain, and no workload's file is opened.
  const auto read =
      volley::simulation::parse_simulation(text, "/nonexistent/fuzz.yaml", "/nonexistent");
  if (read.ok() && (!read->options.validate().ok() || read->times == nullptr)) std::abort();
  const auto requests = volley::simulation::parse_requests(text, "fuzz.jsonl");
  if (requests.ok() && requests->empty()) std::abort();
  const auto change = volley::simulation::parse_change(text);
  if (change.ok() && !(change->at_s >= 0)) std::abort();
  return 0;
}
