"""The one place where the converter meets the compiled module.

GgufFile(path): strict reader of a GGUF header; .kv {key: (type, value)}, .tensors with name, type,
shape, offset and nbytes, .alignment, .data_offset. Raises FormatError, OSError.
quantize(rows float32 [n, cols], type name, threads): uint8 [n, row bytes].
dequantize(uint8 [n, row bytes], type name, cols, threads): float32 [n, cols].
decode_fp8(uint8 [n, cols], stored type name, scales, out float32 [n, cols], *, block_rows, block_cols,
first_row, n_threads): bytes in 8-bit floats times the scales of their blocks.
encode_rows(buffer, stored type name, type name, *, n_cols, head_rows, importance, n_threads): the
same from rows as they are stored; None where a value is not finite or beyond largest_value(type).
Model(path): the runtime's own checks of a file, its weights mapped. Raises FormatError, OSError.
requires_importance(type name): True for types that need an importance matrix.
"""

from __future__ import annotations

from sardine_gguf._native import (
    GgufFile,
    Model,
    decode_fp8,
    dequantize,
    encode_rows,
    largest_value,
    quantize,
    requires_importance,
)

__all__ = [
    "GgufFile",
    "Model",
    "decode_fp8",
    "dequantize",
    "encode_rows",
    "largest_value",
    "quantize",
    "requires_importance",
]
