"""Static int8 quantisation of an ONNX graph in QDQ form."""
