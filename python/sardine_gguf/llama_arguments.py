"""Constructor arguments of llama-cpp-python's Llama: which are taken, which refused and why."""

from __future__ import annotations

from typing import Any

from sardine_gguf.arguments import MAX_INT, integer

# Values that ask for what is done anyway, and what is done. Any other value is refused.
_SAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "split_mode": ((1,), "at most one GPU is used"),
    "main_gpu": ((0,), "at most one GPU is used, the first one of ggml's"),
    "tensor_split": ((None,), "at most one GPU is used"),
    "offload_kqv": ((True,), "keys and values lie with their layer"),
    "op_offload": ((None,), "a layer is computed where its weights lie"),
    "vocab_only": ((False,), "the weights are always mapped"),
    "use_mmap": ((True,), "the file is always mapped"),
    "use_mlock": ((False,), "the mapping is not locked in memory"),
    "kv_overrides": ((None,), "the file's keys are used as they are"),
    "logits_all": (
        (True, False),
        "",
    ),  # eval() returns all logits, completions tell logprobs, either way
    "embedding": ((False,), "embeddings are not supported"),
    "pooling_type": ((-1,), "embeddings are not supported"),
    "attention_type": ((-1,), "attention is causal"),
    "flash_attn": ((True, False), ""),  # the same but for rounding; there is one way to compute it
    "swa_full": ((None,), "these models have no sliding window"),
    "rope_scaling_type": ((-1, None), "the file says how positions are scaled"),
    "rope_freq_base": ((0.0,), "the file says how positions are scaled"),
    "rope_freq_scale": ((0.0,), "the file says how positions are scaled"),
    "yarn_ext_factor": ((-1.0,), "the file says how positions are scaled"),
    "yarn_attn_factor": ((1.0,), "the file says how positions are scaled"),
    "yarn_beta_fast": ((32.0,), "the file says how positions are scaled"),
    "yarn_beta_slow": ((1.0,), "the file says how positions are scaled"),
    "yarn_orig_ctx": ((0,), "the file says how positions are scaled"),
    "no_perf": ((False, True), ""),  # nothing is measured that costs anything
    "lora_base": ((None,), "LoRA adapters are not supported"),
    "lora_scale": ((1.0,), "LoRA adapters are not supported"),
    "lora_path": ((None,), "LoRA adapters are not supported"),
    "numa": ((False, 0), "NUMA placement is the system's"),
    "chat_format": ((None,), "the file's own chat template is used"),
    "chat_handler": ((None,), "the file's own chat template is used"),
    "draft_model": ((None,), "speculative decoding is not supported"),
    "tokenizer": ((None,), "the file's own tokenizer is used"),
    "spm_infill": ((False,), "filling in the middle is not supported"),
}
_KV_TYPES = {0: "f32", 1: "f16", 8: "q8_0"}  # ggml's numbers


def llama_arguments(
    given: dict[str, Any], *, n_batch: int, n_threads: int | None, kv_type: str
) -> tuple[str, dict[str, Any]]:
    """Checks arguments that only llama-cpp-python names.

    Returns:
        the kv_type that they ask for, and sampling defaults.

    Raises:
        TypeError: an argument that neither library has.
        ValueError: one that is not supported, with the reason.
    """
    sampling: dict[str, Any] = {}
    types = [given.pop(name, None) for name in ("type_k", "type_v")]
    if any(t is not None for t in types):
        wanted = {_KV_TYPES.get(1 if t is None else t if isinstance(t, int) else -1) for t in types}
        if len(wanted) > 1 or None in wanted:
            raise ValueError(
                f"type_k is {types[0]} and type_v {types[1]}, expected the same ggml type for both: "
                + ", ".join(f"{n} ({name})" for n, name in _KV_TYPES.items())
            )
        kv_type = str(wanted.pop())
    for name, value in given.items():
        if name == "last_n_tokens_size":
            sampling["repeat_last_n"] = integer(name, value, least=-1, most=MAX_INT)
        elif name in ("n_ubatch", "n_threads_batch"):
            other = n_batch if name == "n_ubatch" else n_threads
            if value not in (None, other):
                raise ValueError(
                    f"{name} is {value}, but there is one number for both: use "
                    f"{'n_batch' if name == 'n_ubatch' else 'n_threads'}"
                )
        elif name not in _SAME:
            raise TypeError(f"Sardine() has no argument '{name}'")
        else:
            same, why = _SAME[name]
            if not any(value is v or value == v for v in same):
                raise ValueError(f"{name} is {value!r}, which is not supported: {why}")
    return kv_type, sampling


_EMBEDDINGS = "embeddings are not supported"
_KEPT = "the context keeps the tokens that the next prompt begins with"
_CONSTANT = "it is what the constructor was given"
_CPP = "there are no libllama structures behind this; see session and model"
_LORA = "LoRA adapters are not supported"

# Public attributes of Llama that Sardine lacks, and what to use instead.
MISSING_ATTRIBUTES = {
    "create_embedding": _EMBEDDINGS,
    "embed": _EMBEDDINGS,
    "pooling_type": _EMBEDDINGS,
    "set_cache": _KEPT,
    "cache": _KEPT,
    "tokenizer": "use tokenize() and detokenize()",
    "tokenizer_": "use tokenize() and detokenize()",
    "scores": "eval() returns the logits",
    "eval_logits": "eval() returns the logits",
    "eval_tokens": "see session.tokens",
    "input_ids": "see session.tokens",
    "logits_to_logprobs": "see sardine_gguf.logprobs.log_softmax",
    "longest_token_prefix": "see sardine_gguf.generation.common_prefix",
    "ctx": _CPP,
    "model_params": _CPP,
    "context_params": _CPP,
    "n_batch": "see session.n_batch",
    "n_threads": "see session.n_threads",
    "n_threads_batch": "see session.n_threads",
    "last_n_tokens_size": "see sampling.repeat_last_n",
    "chat_format": "the file's own chat template is used; see chat_template",
    "chat_handler": "the file's own chat template is used; see chat_template",
    "draft_model": "speculative decoding is not supported",
    "lora_base": _LORA,
    "lora_scale": _LORA,
    "lora_path": _LORA,
    "numa": "NUMA placement is the system's",
    "tensor_split": "at most one GPU is used",
    "kv_overrides": "the file's keys are used as they are",
    "spm_infill": "filling in the middle is not supported",
    "verbose": _CONSTANT,
}
