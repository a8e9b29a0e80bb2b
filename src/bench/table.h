#pragma once

#include <string>
#include <vector>

namespace volley::bench {

/// Columns two spaces apart; the first `text_columns` are aligned to the left, the others, which
/// hold numbers, to the right. The first row is the head.
std::string format_table(const std::vector<std::vector<std::string>>& rows, size_t text_columns);

/// Three significant digits, as a table shows a measured number: "0.0123", "4.56", "78.9", "1234".
std::string three_digits(double value);

/// "87%".
std::string percent(double share);

}  // namespace volley::bench
