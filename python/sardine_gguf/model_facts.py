"""A loaded model in three lines: the file, its experts, how it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sardine_gguf.terminal import clean_line
from sardine_gguf.units import count_text, size_text

if TYPE_CHECKING:
    from sardine_gguf.model import Sardine

# general.file_type, as llama.cpp numbers it, of the types that the converter writes.
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s",
    12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k",
    25: "iq4_nl", 30: "iq4_xs", 32: "bf16",
}  # fmt: skip
# ggml's numbers of tensor types.
_TENSOR_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k",
    12: "q4_k", 13: "q5_k", 14: "q6_k", 20: "iq4_nl", 23: "iq4_xs", 30: "bf16",
}  # fmt: skip


# Names of folders, which the converter takes where nothing names a model.
_GENERIC = {
    "base",
    "model",
    "models",
    "checkpoint",
    "checkpoints",
    "output",
    "merged",
    "hf",
    "final",
    "latest",
}


def model_name(general_name: Any, path: Path) -> str:
    """A model's general.name on one line; its file's name where it has none, or one that says nothing."""
    name = general_name.strip() if isinstance(general_name, str) else ""
    return clean_line(path.stem if name.lower() in {"", *_GENERIC} else name)


def quantization(file_type: Any, tensors: Counter[int]) -> str:
    """Name of a file's type: what its header says, else that of most of its bytes.

    Args:
        file_type: general.file_type, of whatever kind.
        tensors: bytes by ggml's number of a tensor type.
    """
    if isinstance(file_type, int) and file_type in _FILE_TYPES:
        return _FILE_TYPES[file_type]
    most = tensors.most_common(1)
    return _TENSOR_TYPES.get(most[0][0], f"type {most[0][0]}") if most else "empty"


def facts(model: Sardine, width: int = 0) -> str:
    """File, base and its quantization; experts and their names; mode, device, context and memory.

    Args:
        width: columns that a line may take; names that do not fit are counted. 0 shows all.
    """
    h, e = model.model.hparams, model.model.experts
    path = Path(model.model_path)
    name = model_name(model.metadata.get("general.name"), path)
    sizes: Counter[int] = Counter()
    for tensor in model.model.file.tensors:
        sizes[tensor.type] += tensor.nbytes
    quant = quantization(model.metadata.get("general.file_type"), sizes)
    adapter = Path(model.adapter) if model.adapter else None
    after = (
        f", adapter: {clean_line(adapter.name)}, {size_text(adapter.stat().st_size)}"
        if adapter
        else ""
    )
    layers = count_text(h["n_layer"], "layer")
    experts = "experts: none (a plain base model, which runs as it is)"
    if e["expert_count"]:
        head = (
            f"experts: {e['expert_count']}, {e['expert_used_count']} a token, in {len(e['layers'])} of "
            f"{layers}"
        )
        room = width - len(head) - len(after) - len(" ()") if width else 0
        experts = f"{head} ({names_text([clean_line(n) for n in e['names']], room)}){after}"
    threads = count_text(model.session.n_threads, "thread")
    memory = size_text(int(model.session.memory_bytes))
    return "\n".join(
        (
            f"model:   {name} ({h['arch']}, {layers} of {h['n_embd']}), {quant}, "
            f"{size_text(path.stat().st_size)}, {clean_line(path.name)}",
            experts,
            f"runs:    {model.delta_mode} on {_place(model)}, {threads}, context of {model.n_ctx} tokens "
            f"({model.kv_type}, {memory})",
        )
    )


def _place(model: Sardine) -> str:
    n, of = model.n_gpu_layers, model.model.hparams["n_layer"] + 1
    place = f"{model.model.gpu}, {n} of {count_text(of, 'layer')}" if n else "the CPU"
    copies, copied = model.model.repacked
    return f"{place} ({size_text(round(copied))} repacked)" if copies else place


def names_text(names: Sequence[str], room: int) -> str:
    """Names in `room` characters, the others counted; with 0 all of them. At least one is shown."""
    for n in range(len(names), 0, -1):
        rest = [f"{len(names) - n} more"] if n < len(names) else []
        text = ", ".join([*names[:n], *rest])
        if not room or len(text) <= room or n == 1:
            return text
    return ""
