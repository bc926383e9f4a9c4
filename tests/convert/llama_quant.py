"""llama.cpp's quantizer and its rules, through ctypes: what ours are compared with."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_cpp import _ggml

_GGML = ctypes.CDLL(str(_ggml.libggml_base_path / "libggml-base.so.0"))


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _ModelDesc(ctypes.Structure):
    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *(
            (name, ctypes.c_uint32)
            for name in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "k", "v")
        ),
    )


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_P, _I64, _SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
_init = _function(_GGML, "ggml_init", _P, _InitParams)
_free = _function(_GGML, "ggml_free", None, _P)
_new = _function(_GGML, "ggml_new_tensor", _P, _P, ctypes.c_int, ctypes.c_int, ctypes.POINTER(_I64))
_name = _function(_GGML, "ggml_set_name", _P, _P, ctypes.c_char_p)
# Declared in llama.cpp's src/llama-ext.h, which is C++.
_LLAMA = llama_cpp.llama_cpp._lib
_mock = _function(_LLAMA, "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc", _P, _P)
_start = _function(
    _LLAMA, "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params", _P, _P, _P
)
_stop = _function(_LLAMA, "_Z16llama_quant_freeP19quantize_state_impl", None, _P)
_compute = _function(
    _LLAMA,
    "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem",
    *(None, _P, ctypes.c_int, ctypes.POINTER(_P), ctypes.POINTER(ctypes.c_int), _SIZE),
)


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, user_data: Any) -> None:
    pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """llama.cpp says nothing; what listened before listens again afterwards."""
    before, data = llama_cpp.llama_log_callback(), _P()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(_silent, _P(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)


def type_id(name: str) -> int:
    """ggml's number of a type."""
    return int(gguf.GGMLQuantizationType[name.upper()])


def params(
    ftype: int,
    *,
    tensor_types: Sequence[tuple[str, str]] = (),
    pure: bool = False,
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
    leave_output_tensor: bool = False,
    imatrix: Mapping[str, np.ndarray] | None = None,
    overrides: Mapping[str, str | int] | None = None,
) -> Any:
    """llama_model_quantize_params; keeps what it points to alive."""
    out = llama_cpp.llama_model_quantize_default_params()
    out.ftype, out.nthread, out.pure = ftype, 2, pure
    out.quantize_output_tensor = not leave_output_tensor
    if token_embedding_type:
        out.token_embedding_type = type_id(token_embedding_type)
    if output_tensor_type:
        out.output_tensor_type = type_id(output_tensor_type)
    if tensor_types:
        table = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
        for entry, (name, kind) in zip(table, tensor_types, strict=False):
            entry.pattern, entry.type = name.encode(), type_id(kind)
        out.tt_overrides = table
    if imatrix:
        data = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for item, (name, values) in zip(data, imatrix.items(), strict=False):
            item.name, item.size = name.encode(), values.size
            item.data = np.ascontiguousarray(values).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        out.imatrix, out.kept = data, (data, dict(imatrix))
    if overrides:
        keys = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()
        for key, (name, value) in zip(keys, overrides.items(), strict=False):
            key.key = name.encode()
            key.tag = 3 if isinstance(value, str) else 0
            if isinstance(value, str):
                key.value.val_str = value.encode()
            else:
                key.value.val_i64 = value
        out.kv_overrides = keys
    return out


def quantize(source: Path, target: Path, ftype: int, **options: Any) -> None:
    """llama_model_quantize; options as those of params."""
    given = params(ftype, **options)
    with quiet():
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(given)
        )
    assert code == 0


def types(
    arch: str,
    shape: Mapping[str, int],
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    ftype: int,
    **options: Any,
) -> dict[str, int]:
    """llama_quant_compute_types: the type of each F32 tensor (name, ne).

    Args:
        shape: n_embd, n_ff, n_layer, n_head, n_head_kv.
    """
    given = params(ftype, **options)
    desc = _ModelDesc(arch.encode(), n_expert=0, k=64, v=64, **shape)
    context = _init(_InitParams(512 * (len(tensors) + 8), None, True))
    model = _mock(ctypes.byref(desc))
    state = _start(model, ctypes.byref(given))
    try:
        pointers = (_P * len(tensors))()
        for i, (name, ne) in enumerate(tensors):
            pointers[i] = _new(context, 0, len(ne), (_I64 * len(ne))(*ne))
            _name(pointers[i], name.encode())
        result = (ctypes.c_int * len(tensors))()
        with quiet():
            _compute(state, ftype, pointers, result, len(tensors))
        return {name: kind for (name, _), kind in zip(tensors, result, strict=True)}
    finally:
        _stop(state)
        llama_cpp.llama_model_free(model)
        _free(context)
