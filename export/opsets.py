"""The opsets of exported files."""

OPSET = 20  # keeps Gelu and LayerNormalization whole; every parser of TensorRT 10 reads it
# The first with a scale for each channel (DequantizeLinear's axis) and with axes of Squeeze and ReduceSum as inputs.
LEAST_OPSET = 13
