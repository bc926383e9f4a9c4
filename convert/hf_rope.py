"""Rotary embedding and attention scaling of a Hugging Face config as GGUF metadata.

A reader of the file (libllama and ours) computes, for YaRN,

    magnitude of cos and sin = attn_factor * m(1) / m(yarn_log_multiplier)   if the latter is there
                             = attn_factor * m(1)                            if not
    m(s) = 1 + 0.1 * s * ln(factor)

transformers derives its magnitude from attention_factor, mscale and mscale_all_dim. Where the two
would differ, rope.scaling.attn_factor carries the ratio, so that the file means what the config
means.
"""

from __future__ import annotations

import math
from typing import Any

from sardine_gguf.errors import FormatError

from .gguf_file import Metadata

_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "llama_4_scaling_beta",
    "truncate",
    "partial_rotary_factor",
}


def rope_parameters(config: dict[str, Any], file: str) -> dict[str, Any]:
    """The rope parameters of a text config: `rope_parameters`, or the older `rope_scaling`.

    Raises:
        FormatError: there are none, they are not one flat set of known parameters, or both are there
            and differ.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    # transformers takes rope_scaling then, other readers rope_parameters.
    if (
        new
        and old
        and _by_kind(_with_theta(new, new, config.get("rope_theta")))
        != _by_kind(_with_theta(old, new, config.get("rope_theta")))
    ):
        raise _bad(
            file,
            "rope_scaling",
            "rope_parameters is there too, and they differ; leave out the one that does not hold",
        )
    rope = new or old or {}
    if not isinstance(rope, dict):
        raise _bad(file, "rope_parameters", f"expected an object, found {type(rope).__name__}")
    rope = dict(rope)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config.get("rope_theta")
    if rope["rope_theta"] is None:
        raise _bad(file, "rope_theta", "neither rope_parameters nor rope_theta is there")
    if rope.get("partial_rotary_factor") is None:
        rope["partial_rotary_factor"] = config.get("partial_rotary_factor")
    unknown = sorted(set(rope) - _KNOWN)
    if unknown:
        raise _bad(file, "rope_parameters", f"unsupported parameter {unknown[0]!r}")
    return rope


def _with_theta(old: Any, new: Any, outside: Any) -> Any:
    """The older set, which may leave rope_theta to its surroundings."""
    theta = new.get("rope_theta") if outside is None and isinstance(new, dict) else outside
    return {"rope_theta": theta, **old} if isinstance(old, dict) else old


def _by_kind(rope: Any) -> Any:
    """The parameters with one spelling of the kind, to compare."""
    if not isinstance(rope, dict):
        return rope
    out = {k: v for k, v in rope.items() if k != "type" and v is not None}
    return {**out, "rope_type": rope.get("rope_type") or rope.get("type")}


def rope_metadata(
    arch: str, config: dict[str, Any], head_dim: int, context: int, file: str
) -> Metadata:
    """Metadata keys (with the prefix arch) of the rope and the attention temperature.

    Raises:
        FormatError: a rope type or parameter that a reader of the file would not compute.
    """
    rope = rope_parameters(config, file)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = _number(rope, "rope_theta", file)
    if _number(rope, "partial_rotary_factor", file, 1.0) != 1.0:
        raise _bad(file, "partial_rotary_factor", "only 1 is supported")
    if theta <= 1:
        raise _bad(file, "rope_theta", f"expected more than 1, found {theta}")
    beta = _number(rope, "llama_4_scaling_beta", file, 0.0)
    original = rope.get("original_max_position_embeddings")
    out: Metadata = {
        f"{arch}.rope.freq_base": ("f32", theta),
        f"{arch}.rope.dimension_count": ("u32", head_dim),
    }
    if kind == "yarn":
        if original is None:
            original = context
        if arch == "llama" and (rope.get("beta_fast", 32), rope.get("beta_slow", 1)) != (32, 1):
            raise _bad(file, "beta_fast", "the architecture llama knows the betas 32 and 1 only")
        _yarn(out, arch, rope, head_dim, context, _count(original, file), file)
    elif kind == "default":
        if original is not None and beta:
            out[f"{arch}.rope.scaling.original_context_length"] = ("u32", _count(original, file))
    else:
        raise _bad(file, "rope_type", f"{kind!r} is not supported, expected yarn or default")
    if beta:
        if original is None:
            raise _bad(file, "llama_4_scaling_beta", "needs original_max_position_embeddings")
        out[f"{arch}.attention.temperature_scale"] = ("f32", beta)
    return out


def _yarn(
    out: Metadata,
    arch: str,
    rope: dict[str, Any],
    head_dim: int,
    context: int,
    original: int,
    file: str,
) -> None:
    factor = _number(rope, "factor", file, context / original)
    if factor < 1:
        raise _bad(file, "factor", f"expected at least 1, found {factor}")
    # As transformers does: 0 counts as absent.
    fast = _number(rope, "beta_fast", file, 0.0) or 32.0
    slow = _number(rope, "beta_slow", file, 0.0) or 1.0
    _check_ramp(rope, head_dim, _number(rope, "rope_theta", file), original, fast, slow, file)
    prefix = f"{arch}.rope.scaling."
    out[prefix + "type"] = ("str", "yarn")
    out[prefix + "factor"] = ("f32", factor)
    out[prefix + "original_context_length"] = ("u32", original)
    if rope.get("beta_fast"):
        out[prefix + "yarn_beta_fast"] = ("f32", fast)
    if rope.get("beta_slow"):
        out[prefix + "yarn_beta_slow"] = ("f32", slow)
    mscale = _number(rope, "mscale", file, 0.0)
    all_dim = _number(rope, "mscale_all_dim", file, 0.0)
    if rope.get("mscale_all_dim") is not None:
        out[prefix + "yarn_log_multiplier"] = ("f32", all_dim)

    def magnitude(scale: float) -> float:
        return 1.0 + 0.1 * scale * math.log(factor)

    if rope.get("attention_factor") is not None:
        wanted = _number(rope, "attention_factor", file)
        # As llama.cpp's converter writes it; no reader of mistral3 uses it.
        out[prefix + "yarn_attn_factor"] = ("f32", wanted)
    elif mscale and all_dim:
        wanted = magnitude(mscale) / magnitude(all_dim)
    else:
        wanted = magnitude(1.0)
    # Readers know the log multiplier in mistral3 only.
    read = magnitude(1.0) / (magnitude(all_dim) if all_dim and arch == "mistral3" else 1.0)
    if wanted <= 0 or read <= 0:
        raise _bad(file, "mscale", "the magnitude of the rotary embedding is not positive")
    if abs(wanted / read - 1) > 1e-7:
        out[prefix + "attn_factor"] = ("f32", wanted / read)


def _check_ramp(
    rope: dict[str, Any], dim: int, theta: float, original: int, fast: float, slow: float, file: str
) -> None:
    """The file's readers round the ramp's ends outwards and expect them in order."""
    truncate = rope.get("truncate")
    if truncate not in (None, True):
        raise _bad(file, "truncate", f"only true is supported, found {truncate!r}")
    if fast < 0 or slow < 0:
        raise _bad(file, "beta_fast", "beta_fast and beta_slow must not be negative")

    def end(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(end(fast)), 0), min(math.ceil(end(slow)), dim - 1)
    if low > high:
        raise _bad(
            file,
            "rope_parameters",
            f"the YaRN ramp runs from dimension {low} down to "
            f"{high}; beta_fast, beta_slow and rope_theta do not fit the head size {dim}",
        )


def _number(rope: dict[str, Any], key: str, file: str, default: float | None = None) -> float:
    value = rope.get(key)
    if value is None:
        if default is None:
            raise _bad(file, key, "is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(file, key, f"expected a number, found {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) < 1e30:
        raise _bad(file, key, "is out of range")
    return number


def _count(value: Any, file: str) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise _bad(
            file,
            "original_max_position_embeddings",
            f"expected an integer from 1 to 2^31 - 1, found {str(value)[:40]!r}",
        )
    return value


def _bad(file: str, field: str, message: str) -> FormatError:
    return FormatError(f"{file}: {field}: {message}", file=file, field=field)
