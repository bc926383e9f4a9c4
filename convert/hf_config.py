"""config.json of a Ministral 3 folder, checked and reduced to what the conversion needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .files import MAX_CONFIG_BYTES, read_json
from .gguf_file import Metadata
from .hf_names import HF, Naming
from .hf_quant import StoredQuant, hf_quantization
from .hf_rope import rope_metadata

ARCH = "mistral3"

_LIMITS = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1024,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 30,
}


@dataclass(frozen=True)
class HfConfig:
    """The text model's shape.

    wrapped: there are vision tensors too. tied: the config says that the output matrix is the
    embedding. naming: how the tensors are called. quant: how fp8 weights are scaled, if they are.
    """

    path: Path
    arch: str
    hidden: int
    inner: int
    layers: int
    heads: int
    heads_kv: int
    head_dim: int
    vocab: int
    context: int
    rms_eps: float
    wrapped: bool
    tied: bool
    naming: Naming
    quant: StoredQuant | None
    rope: Metadata

    def metadata(self) -> Metadata:
        """The architecture's GGUF keys."""
        out: Metadata = {}
        for key, value in {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.heads_kv,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "vocab_size": self.vocab,
        }.items():
            out[f"{self.arch}.{key}"] = ("u32", value)
        out[f"{self.arch}.attention.layer_norm_rms_epsilon"] = ("f32", self.rms_eps)
        return {**out, **self.rope}


def read_config(folder: Path) -> HfConfig:
    """Reads and checks config.json.

    Raises:
        FormatError: another kind of model, a missing or impossible value, or something that the
            runtime would not compute (sliding windows, biases, quantized weights, ...).
        OSError: config.json cannot be read.
    """
    path = folder / "config.json"
    config = read_json(path, MAX_CONFIG_BYTES)
    kind = config.get("model_type")
    wrapped = kind == "mistral3"
    text = config
    if wrapped:
        text = config.get("text_config")  # type: ignore[assignment]
        if not isinstance(text, dict):
            raise _bad(path, "text_config", "expected an object in a mistral3 model")
        kind = text.get("model_type")
    if kind != "ministral3":
        raise _bad(
            path,
            "model_type",
            f"expected ministral3, found {str(kind)[:60]!r}"
            + (" in text_config" if wrapped else ""),
        )
    _refuse_unsupported(path, text)
    quant = hf_quantization(config.get("quantization_config"), path) or hf_quantization(
        text.get("quantization_config"), path
    )
    hidden = count(path, text, "hidden_size")
    heads = count(path, text, "num_attention_heads")
    heads_kv = count(path, text, "num_key_value_heads", heads)
    context = count(path, text, "max_position_embeddings", 262144)
    # Absent is not null: the model's own default is 128, null means hidden / heads.
    head_dim = count(path, text, "head_dim", hidden // heads) if "head_dim" in text else 128
    check_heads(path, heads, heads_kv, head_dim)
    return HfConfig(
        path=path,
        arch=ARCH,
        hidden=hidden,
        inner=count(path, text, "intermediate_size"),
        layers=count(path, text, "num_hidden_layers"),
        heads=heads,
        heads_kv=heads_kv,
        head_dim=head_dim,
        vocab=count(path, text, "vocab_size"),
        context=context,
        rms_eps=epsilon(path, text, "rms_norm_eps"),
        wrapped=wrapped,
        tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        naming=HF,
        quant=quant,
        rope=rope_metadata(ARCH, text, head_dim, context, str(path)),
    )


def _refuse_unsupported(path: Path, text: dict[str, Any]) -> None:
    if text.get("sliding_window") is not None:
        raise _bad(
            path,
            "sliding_window",
            f"expected null, found {text['sliding_window']!r:.40}: "
            "sliding windows are not supported",
        )
    layer_types = text.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types)
    ):
        raise _bad(path, "layer_types", "only full_attention is supported")
    for key in ("attention_bias", "mlp_bias"):
        if text.get(key):
            raise _bad(path, key, "biases are not supported")
    act = text.get("hidden_act", "silu")
    if act != "silu":
        raise _bad(path, "hidden_act", f"expected silu, found {act!r:.40}")


def check_heads(path: Path, heads: int, heads_kv: int, head_dim: int) -> None:
    """Raises FormatError for numbers of heads or a head size that no model has."""
    if heads % heads_kv:
        raise _bad(path, "num_key_value_heads", f"{heads_kv} does not divide {heads} heads")
    if head_dim % 2:
        raise _bad(path, "head_dim", f"expected an even number, found {head_dim}")


def epsilon(path: Path, text: dict[str, Any], key: str) -> float:
    """The norms' epsilon, 1e-5 by default; raises FormatError."""
    eps = text.get(key, 1e-5)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
        raise _bad(path, key, f"expected a number from 0 to 1, found {eps!r:.40}")
    return float(eps)


def count(
    path: Path, text: dict[str, Any], key: str, default: int | None = None, name: str | None = None
) -> int:
    """The number of a config, with the limits of Hugging Face's key; name: its own name there.

    Raises:
        FormatError: it is missing without a default, or no integer within the limits.
    """
    value = text.get(name or key)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= _LIMITS[key]:
        raise _bad(
            path,
            name or key,
            f"expected an integer from 1 to {_LIMITS[key]}, found {str(value)[:40]!r}",
        )
    return value


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
