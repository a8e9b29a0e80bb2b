#pragma once

#include <string>
#include <vector>

#include "volley/base/status.h"

namespace volley::paper_figures {

/// One of the files in data/: lines that begin with '#' are comments, the first other line names
/// the columns, the first column names the rows.
struct Table {
  std::vector<std::string> columns;  ///< Without the first.
  struct Row {
    std::string name;
    std::vector<double> values;
  };
  std::vector<Row> rows;

  /// Errors: kNotFound, naming what there is.
  Result<double> at(const std::string& row, const std::string& column) const;
};

/// Errors: kNotFound, kInvalidArgument ("FILE:LINE: ...").
Result<Table> read_table(const std::string& file);

}  // namespace volley::paper_figures
