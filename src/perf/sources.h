#pragma once

// Every figure of a catalogue file cites where it is from; this reads and checks the list.

#include <set>
#include <string>
#include <vector>

#include "volley/config/yaml_reader.h"

namespace volley::perf {

struct Source {
  /// Keys ("price", "flops.fp8"), or a key that others are under ("efficiency"): then it stands for
  /// those of them that no other source names.
  std::vector<std::string> figures;
  std::string cites;
};

/// The list under `sources` of a document.
std::vector<Source> read_sources(config::YamlMap& root);

/// Every key of the document but `sources` and those in `words` (which are no figures) must have
/// exactly one source, and every name in `figures` must stand for some key. The document must have
/// passed its reader before: this one trusts its form. Errors: kInvalidArgument "ORIGIN:LINE: KEY:
/// ...".
Status check_sources(const YAML::Node& document, const std::vector<Source>& sources,
                     const std::set<std::string>& words, const std::string& origin);

}  // namespace volley::perf
