// Pillow's BILINEAR resize of 8-bit RGB (antialiased), so that C++ feeds the network the same pixels as Python.
//
// OpenCV's and most graphics libraries' bilinear resize does not antialias: it gives other pixels, and other embeddings.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace edgeembed {

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  // height * width * 3, row by row
};

constexpr int kPlaces = 22;  // binary places of the integer weights

// Source pixels that make one target pixel, and how much of each.
struct Taps {
  int first = 0;
  std::vector<int32_t> weight;
};

inline std::vector<Taps> filter_taps(int source_size, int target_size) {
  const double scale = static_cast<double>(source_size) / target_size;
  const double support = std::max(scale, 1.0);  // a reduction widens the triangle, so that it averages
  std::vector<Taps> taps(target_size);
  for (int i = 0; i < target_size; ++i) {
    const double centre = (i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(centre - support + 0.5));
    const int end = std::min(source_size, static_cast<int>(centre + support + 0.5));
    std::vector<double> exact;
    double sum = 0;
    for (int k = first; k < end; ++k) {
      const double distance = std::abs((k - centre + 0.5) * (1.0 / support));
      exact.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      sum += exact.back();
    }
    taps[i].first = first;
    for (double value : exact)
      taps[i].weight.push_back(static_cast<int32_t>(0.5 + (sum == 0 ? value : value / sum) * (1 << kPlaces)));
  }
  return taps;
}

inline uint8_t to_byte(int64_t sum) { return static_cast<uint8_t>(std::clamp<int64_t>(sum >> kPlaces, 0, 255)); }

inline Image resize_width(const Image& source, int width) {
  const auto taps = filter_taps(source.width, width);
  Image target{width, source.height, std::vector<uint8_t>(size_t{3} * width * source.height)};
  for (int y = 0; y < source.height; ++y)
    for (int x = 0; x < width; ++x)
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = int64_t{1} << (kPlaces - 1);
        for (size_t k = 0; k < taps[x].weight.size(); ++k)
          sum += int64_t{taps[x].weight[k]} * source.rgb[3 * (size_t(y) * source.width + taps[x].first + k) + channel];
        target.rgb[3 * (size_t(y) * width + x) + channel] = to_byte(sum);
      }
  return target;
}

inline Image resize_height(const Image& source, int height) {
  const auto taps = filter_taps(source.height, height);
  const size_t row = size_t{3} * source.width;
  Image target{source.width, height, std::vector<uint8_t>(row * height)};
  for (int y = 0; y < height; ++y)
    for (size_t x = 0; x < row; ++x) {
      int64_t sum = int64_t{1} << (kPlaces - 1);
      for (size_t k = 0; k < taps[y].weight.size(); ++k)
        sum += int64_t{taps[y].weight[k]} * source.rgb[(taps[y].first + k) * row + x];
      target.rgb[y * row + x] = to_byte(sum);
    }
  return target;
}

// Resizes both sides at once, without keeping the proportions.
inline Image resize(const Image& source, int height, int width) {
  // Pillow 13 begins with the columns where the height shrinks more than twice as much as the width.
  const int lost = source.height - height;
  if (lost > 0 && lost > 2 * (source.width - width)) return resize_width(resize_height(source, height), width);
  return resize_height(resize_width(source, width), height);
}

}  // namespace edgeembed
