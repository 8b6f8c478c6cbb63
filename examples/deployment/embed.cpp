// Embeds one image with ONNX Runtime's C++ API: embed MODEL.onnx IMAGE.ppm
//
// Build: g++ -std=c++17 -O2 embed.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o embed
// The image is a binary PPM (P6), to need no decoder here: put your own in place of read_ppm. It must give 8-bit RGB,
// turned as the EXIF orientation of the file says, with transparent pixels laid on white.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

#include "resize.hpp"

edgeembed::Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int largest = 0;
  edgeembed::Image image;
  file >> kind >> image.width >> image.height >> largest;
  file.get();  // the one white space before the pixels
  if (!file || kind != "P6" || largest != 255) throw std::runtime_error(path + ": expected a binary PPM of 8 bits");
  image.rgb.resize(size_t{3} * image.width * image.height);
  file.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()));
  if (!file) throw std::runtime_error(path + ": is cut off");
  return image;
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("expected: embed MODEL.onnx IMAGE.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "edgeembed");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(env, argv[1], options);

  // The input is `image`, uint8, (N, height, width, 3), RGB, 0..255; normalisation is inside the graph.
  const auto input_shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  const auto height = static_cast<int>(input_shape[1]), width = static_cast<int>(input_shape[2]);
  edgeembed::Image pixels = edgeembed::resize(read_ppm(argv[2]), height, width);

  const std::array<int64_t, 4> shape{1, height, width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value image =
      Ort::Value::CreateTensor<uint8_t>(memory, pixels.rgb.data(), pixels.rgb.size(), shape.data(), shape.size());
  const char* input_names[] = {"image"};
  const char* output_names[] = {"embedding"};
  auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, &image, 1, output_names, 1);

  // The output is `embedding`, float32, (N, D), unit length: compare two by their inner product.
  const auto count = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();
  const float* embedding = outputs[0].GetTensorData<float>();
  for (size_t i = 0; i < count; ++i) std::printf("%s%.6f", i ? " " : "", embedding[i]);
  std::printf("\n");
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
