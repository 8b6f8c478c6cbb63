"""TensorRT engines of a bundle's ONNX files."""
