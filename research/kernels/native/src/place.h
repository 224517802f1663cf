// Where pixels are.
#pragma once

#include <cstdint>

namespace flagship {

// Places of images one after the other, without a division for each: row by row, image after image, or with
// `images_first` all images at one place before the next.
struct Place {
  int64_t images, rows, columns;
  bool images_first;
  int64_t image, row, column;

  Place(int64_t images, int64_t rows, int64_t columns, bool images_first, int64_t number)
      : images(images), rows(rows), columns(columns), images_first(images_first) {
    if (images_first) {
      image = number % images;
      column = number / images % columns;
      row = number / (images * columns);
    } else {
      column = number % columns;
      row = number / columns % rows;
      image = number / (rows * columns);
    }
  }

  void Next() {
    if (images_first) {
      if (++image < images) return;
      image = 0;
      if (++column < columns) return;
      column = 0;
      ++row;
    } else {
      if (++column < columns) return;
      column = 0;
      if (++row < rows) return;
      row = 0;
      ++image;
    }
  }
};

}  // namespace flagship
