#pragma once

#include <string>
#include <vector>

#include "volley/v1/control.pb.h"

namespace volley::cli {

/// Columns padded to their widest cell, two spaces apart; the first row is the head.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

/// The nodes of a cluster, a row each, for people.
std::string format_cluster(const v1::GetStatusResponse& status);

/// "attention", "expert", "frontend".
std::string role_name(v1::Role role);

}  // namespace volley::cli
