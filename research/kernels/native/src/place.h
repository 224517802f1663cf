// Where a number of a row of pixels is.
#pragma once

#include <cstdint>

namespace flagship {

// Places of an image after the other, row by row: (image, row, column) without a division for each.
struct Place {
  int64_t rows, columns;
  int64_t image, row, column;

  Place(int64_t rows, int64_t columns, int64_t number)
      : rows(rows), columns(columns), image(number / (rows * columns)), row(number / columns % rows),
        column(number % columns) {}

  void Next() {
    if (++column < columns) return;
    column = 0;
    if (++row < rows) return;
    row = 0;
    ++image;
  }
};

}  // namespace flagship
