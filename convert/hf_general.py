"""The general.* keys of a model folder: authorship, sampling defaults, file type."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import gguf
import yaml  # type: ignore[import-untyped]
from gguf import GGUFValueType as ValueType
from sardine_gguf.errors import FormatError
from sardine_gguf.sampling import file_value

from .files import read_json_if_there, regular_size
from .gguf_file import Metadata
from .hf_config import ARCH
from .schema import FILE_TYPES

MAX_CARD_BYTES, MAX_FRONT_MATTER = 4 << 20, 256 << 10

_TYPE_NAMES = {
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.FLOAT32: "f32",
    ValueType.STRING: "str",
    ValueType.BOOL: "bool",
}


def general_metadata(
    folder: Path, arch: str, out_type: str, n_parameters: int, warnings: list[str]
) -> Metadata:
    """What llama.cpp's converter writes, from the model card, the configs and the folder's name.

    Sampling defaults that the runtime would refuse are left out, with a warning.

    Raises:
        FormatError: one of those files is malformed.
    """
    for name in ("README.md", "config.json", "generation_config.json"):
        if (folder / name).exists() and regular_size(folder / name) > MAX_CARD_BYTES:
            raise FormatError(
                f"{folder / name}: expected at most {MAX_CARD_BYTES} bytes",
                file=str(folder / name),
            )
    out: Metadata = {"general.architecture": ("str", arch), "general.type": ("str", "model")}
    logs = [logging.getLogger(n) for n in ("metadata", "gguf.gguf_writer")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        _check_card(folder / "README.md")
        out.update(_collect(folder, n_parameters, warnings))
    except (OSError, FormatError):
        raise
    except Exception as error:  # the model card is free text that gguf trusts
        raise FormatError(
            f"{folder}: the model card or a config cannot be understood: "
            f"{type(error).__name__}: {str(error)[:200]}",
            file=str(folder),
        ) from None
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    out["general.file_type"] = ("u32", FILE_TYPES[out_type])
    out["general.quantization_version"] = ("u32", gguf.GGML_QUANT_VERSION)
    return out


def _check_card(path: Path) -> None:
    """Refuses YAML that a short text makes long to read: aliases, deep nesting."""
    if not path.exists():
        return
    lines = path.read_text("utf-8").splitlines()
    if lines[:1] != ["---"]:
        return
    front = "\n".join(itertools.takewhile(lambda line: line != "---", lines[1:]))
    if len(front) > MAX_FRONT_MATTER:
        raise ValueError(f"front matter of {len(front)} characters")
    depth = 0
    for event in yaml.parse(front.replace("\t", "  "), Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 50:
            raise ValueError("the model card's front matter has aliases or is nested too deeply")


def _collect(folder: Path, n_parameters: int, warnings: list[str]) -> Metadata:
    metadata = gguf.Metadata.load(None, folder.resolve(), None, n_parameters)
    if metadata.sampling_penalty_repeat is None:
        # transformers' name, which gguf reads from release 0.20 on.
        config = read_json_if_there(folder / "generation_config.json") or {}
        metadata.sampling_penalty_repeat = config.get("repetition_penalty")
    if metadata.name is None:
        metadata.name = folder.resolve().name or "model"
    if metadata.size_label is None and n_parameters > 0:
        metadata.size_label = gguf.size_label(n_parameters, n_parameters, 0, 0)
    writer = gguf.GGUFWriter(None, ARCH)
    metadata.set_gguf_meta_model(writer)
    out: Metadata = {}
    for key, entry in writer.kv_data[0].items():
        if _takes(key, entry.value, folder, warnings):
            out[key] = _typed(key, entry.type, entry.value)
    out.pop("general.architecture", None)
    return out


def _takes(key: str, value: Any, folder: Path, warnings: list[str]) -> bool:
    """Whether a key may be written: of general.sampling.*, only what the runtime takes."""
    name = key.removeprefix("general.sampling.")
    if name == key or not isinstance(value, (int, float)):
        return True
    try:
        if isinstance(value, bool):
            raise ValueError("expected a number")
        file_value(name, value)
    except KeyError:  # no option of the runtime
        return True
    except (ValueError, OverflowError) as error:
        warnings.append(
            f"{folder / 'generation_config.json'}: {name} is {str(value)[:40]}: {error}; left out"
        )
        return False
    return True


def _typed(key: str, kind: ValueType, value: Any) -> tuple[str, Any]:
    if kind == ValueType.ARRAY:
        if not all(isinstance(v, str) for v in value):
            raise ValueError(f"{key}: expected a list of texts")
        return ("arr[str]", list(value))
    checks = {"u32": int, "i32": int, "f32": (int, float), "str": str, "bool": bool}
    name = _TYPE_NAMES[kind]
    if not isinstance(value, checks[name]):  # type: ignore[arg-type]
        raise ValueError(f"{key}: expected {name}, found {type(value).__name__}")
    return (name, value)
