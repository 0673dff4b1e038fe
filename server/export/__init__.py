"""A trained model as ONNX files, one for each subset of its modalities."""
