#pragma once

#include <string>
#include <vector>

#include "report/result_row.hpp"

namespace terse::examples {

enum class Alignment { left, right };

/// Cells of text in aligned columns.
class Table {
 public:
  /// A newline in `header` makes it taller instead of wider.
  void add_column(std::string header, Alignment alignment);

  /// One cell for each column.
  void add_row(std::vector<std::string> cells);

  /// Lines of equal columns for a terminal, header ruled off, two spaces between columns.
  [[nodiscard]] std::string plain_text() const;

  /// A GitHub-flavoured Markdown table; bars in cells are escaped.
  [[nodiscard]] std::string markdown() const;

 private:
  struct Column {
    std::string header;
    Alignment alignment;
  };
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// The columns of the results, in the units a reader wants (shares as per cent). Columns that no
/// row has measured are left out. At most 140 columns wide with policy names up to 26.
[[nodiscard]] Table result_table(const std::vector<ResultRow>& rows);

}  // namespace terse::examples
