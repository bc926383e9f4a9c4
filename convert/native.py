"""The one place where the converter meets the compiled module.

GgufFile(path): strict reader of a GGUF header; .kv {key: (type, value)}, .tensors with name, type,
shape, offset and nbytes, .alignment, .data_offset. Raises FormatError, OSError.
quantize(rows float32 [n, cols], type name, threads): uint8 [n, row bytes].
dequantize(uint8 [n, row bytes], type name, cols, threads): float32 [n, cols].
"""

from __future__ import annotations

from sardine_gguf._native import GgufFile, dequantize, quantize

__all__ = ["GgufFile", "dequantize", "quantize"]
