#include "csv.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace volley::paper_figures {
namespace {

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream stream(line);
  for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
  return cells;
}

}  // namespace

Result<double> Table::at(const std::string& row, const std::string& column) const {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const Row& candidate) { return candidate.name == row; });
  const auto place = std::find(columns.begin(), columns.end(), column);
  if (found == rows.end() || place == columns.end()) {
    return not_found("no row '{}' with a column '{}'", row, column);
  }
  return found->values[static_cast<size_t>(place - columns.begin())];
}

Result<Table> read_table(const std::string& file) {
  std::ifstream stream(file);
  if (!stream) return not_found("{}: cannot be read", file);
  Table table;
  bool header = true;
  size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (line.empty() || line.front() == '#') continue;
    std::vector<std::string> cells = cells_of(line);
    if (header) {
      table.columns.assign(cells.begin() + 1, cells.end());
      header = false;
      continue;
    }
    if (cells.size() != table.columns.size() + 1) {
      return invalid_argument("{}:{}: {} cells, expected {}", file, number, cells.size(),
                              table.columns.size() + 1);
    }
    Table::Row row{.name = cells[0], .values = {}};
    for (size_t i = 1; i < cells.size(); ++i) {
      double value = 0;
      if (!absl::SimpleAtod(cells[i], &value)) {
        return invalid_argument("{}:{}: '{}' is not a number", file, number, cells[i]);
      }
      row.values.push_back(value);
    }
    table.rows.push_back(std::move(row));
  }
  if (table.rows.empty()) return invalid_argument("{}: no rows", file);
  return table;
}

}  // namespace volley::paper_figures
