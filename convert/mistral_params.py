"""params.json of Mistral's own format, checked and reduced to what the conversion needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from .files import MAX_CONFIG_BYTES, read_json
from .hf_config import ARCH, HfConfig, check_heads, count, epsilon
from .hf_names import NATIVE
from .hf_quant import native_quantization
from .hf_rope import rope_metadata

DEFAULT_CONTEXT = 128_000  # what Mistral's own readers assume

# Without the temperature of Llama 4, llama.cpp calls the model by the older architecture's name.
_OLDER_ARCH = "llama"
_UNSUPPORTED = (
    "moe",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "sliding_window",
    "_sliding_window",
    "use_biases",
    "attn_logit_softcapping",
    "ada_rms_norm_t_cond",
)


def read_params(folder: Path, warnings: list[str]) -> HfConfig:
    """Reads and checks params.json.

    Raises:
        FormatError: another kind of model, a missing or impossible value, or something that the
            runtime would not compute.
        OSError: params.json cannot be read.
    """
    path = folder / "params.json"
    params = read_json(path, MAX_CONFIG_BYTES)
    for key in _UNSUPPORTED:
        if params.get(key) not in (None, False):
            raise _bad(path, key, f"{str(params[key])[:60]!r} is not supported")
    if params.get("activation", "silu") != "silu":
        raise _bad(path, "activation", f"expected silu, found {str(params['activation'])[:40]!r}")
    if params.get("causal") is False:
        raise _bad(path, "causal", "expected true, found false")
    hidden = count(path, params, "hidden_size", name="dim")
    heads = count(path, params, "num_attention_heads", name="n_heads")
    heads_kv = count(path, params, "num_key_value_heads", heads, name="n_kv_heads")
    head_dim = count(path, params, "head_dim", hidden // heads)
    check_heads(path, heads, heads_kv, head_dim)
    if params.get("v_head_dim") not in (None, head_dim):
        raise _bad(path, "v_head_dim", f"expected {head_dim}, found {params['v_head_dim']!r:.40}")
    limit = "max_position_embeddings"
    name = limit if params.get(limit) is not None else "max_seq_len"
    if params.get(name) is None:
        warnings.append(f"{path}: no {limit}; a context of {DEFAULT_CONTEXT} tokens is assumed")
    context = count(path, params, limit, DEFAULT_CONTEXT, name=name)
    arch = ARCH if params.get("llama_4_scaling") is not None else _OLDER_ARCH
    return HfConfig(
        path=path,
        arch=arch,
        hidden=hidden,
        inner=count(path, params, "intermediate_size", name="hidden_dim"),
        layers=count(path, params, "num_hidden_layers", name="n_layers"),
        heads=heads,
        heads_kv=heads_kv,
        head_dim=head_dim,
        vocab=count(path, params, "vocab_size"),
        context=context,
        rms_eps=epsilon(path, params, "norm_eps"),
        wrapped=True,
        tied=bool(params.get("tied_embeddings")),
        naming=NATIVE,
        quant=native_quantization(params.get("quantization"), path),
        rope=rope_metadata(arch, _rope(params, path), head_dim, context, str(path)),
    )


def _rope(params: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rope in Hugging Face's words."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": params.get("rope_theta", 1e4)}
    yarn = _object(params, "yarn", path)
    if yarn is not None:
        scaled = yarn.get("apply_scale")
        if not isinstance(scaled, bool):
            raise _bad(path, "yarn", f"apply_scale: expected true or false, found {scaled!r:.40}")
        missing = [k for k in ("factor", "beta", "alpha") if yarn.get(k) is None]
        if missing:
            raise _bad(path, "yarn", f"{missing[0]} is missing")
        rope |= {
            "rope_type": "yarn",
            "factor": yarn["factor"],
            "beta_fast": yarn["beta"],
            "beta_slow": yarn["alpha"],
            "original_max_position_embeddings": yarn.get("original_max_position_embeddings"),
            "mscale": 0.0 if scaled else 1.0,
            "mscale_all_dim": 0.0 if scaled else 1.0,
        }
    scaling = _object(params, "llama_4_scaling", path)
    if scaling is not None:
        if scaling.get("beta") is None:
            raise _bad(path, "llama_4_scaling", "beta is missing")
        rope["llama_4_scaling_beta"] = scaling["beta"]
        key = "original_max_position_embeddings"
        original = scaling.get(key)
        if original is not None and rope.setdefault(key, original) != original:
            raise _bad(
                path,
                "llama_4_scaling",
                f"{key} is {original!r:.40}, {rope[key]!r:.40} in yarn; they must be the same",
            )
    return {"rope_parameters": rope}


def _object(params: dict[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    value = params.get(key)
    if value is not None and not isinstance(value, dict):
        raise _bad(path, key, f"expected an object, found {type(value).__name__}")
    return value


def _bad(path: Path, field: str, message: str) -> FormatError:
    return FormatError(f"{path}: {field}: {message}", file=str(path), field=field)
