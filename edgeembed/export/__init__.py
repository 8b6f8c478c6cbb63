"""Exports a run as ONNX files and TensorRT engines; the gate refuses a file that is worse than its limits allow."""
