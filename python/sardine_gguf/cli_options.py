"""Flags to what the model and the chat take."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sardine_gguf.cache_type_flags import cache_type
from sardine_gguf.chat import ChatTemplate
from sardine_gguf.model import Sardine
from sardine_gguf.response_format import response_grammar
from sardine_gguf.text_files import read_text_file

_SAMPLING = (
    "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "repeat_last_n",
    "repeat_penalty", "presence_penalty", "frequency_penalty", "mirostat_mode", "mirostat_eta",
    "mirostat_tau",
)  # fmt: skip


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of Sardine.

    Raises:
        ValueError: flags that contradict each other, or ask for what this build lacks.
    """
    for both, other in (("batch_size", "ubatch_size"), ("threads", "threads_batch")):
        one, two = getattr(args, both), getattr(args, other)
        if two not in (None, one):
            flags = [f"--{name.replace('_', '-')}" for name in (both, other)]
            raise ValueError(
                f"{flags[1]} is {two} and {flags[0]} {one}, expected one number for both: use {flags[0]}"
            )
    return {
        "adapter": args.adapter,
        "n_ctx": args.ctx_size or None,
        "n_batch": args.batch_size,
        "n_threads": None if args.threads == -1 else args.threads,
        "n_gpu_layers": args.n_gpu_layers,
        "repack": args.repack,
        "delta_mode": args.delta_mode,
        "experts": args.experts,
        "kv_type": cache_type(args),
        "seed": args.seed,
    }


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """GenerationOptions of every turn; what was not asked for is None.

    Raises:
        ValueError: a grammar or schema that is none, or flags that contradict each other.
        FormatError, OSError: a file that cannot be read.
    """
    temperature = args.temperature
    if temperature is None and args.example:
        temperature = 0.0
    budget = None if args.reasoning_budget == -1 else args.reasoning_budget
    if args.reasoning == "off":
        if budget:
            raise ValueError(f"-rea off allows no thoughts, but --reasoning-budget is {budget}")
        budget = 0
    return {
        "max_tokens": None if args.n_predict < 0 else args.n_predict,
        "temperature": temperature,
        "reasoning_budget": budget,
        "reasoning_format": None if args.reasoning_format == "auto" else args.reasoning_format,
        "grammar": _grammar(args),
        "samplers": args.samplers,
        "stop": args.stop,
        "logit_bias": dict(args.logit_bias) if args.logit_bias else None,
        **{name: getattr(args, name) for name in _SAMPLING},
    }


def _grammar(args: argparse.Namespace) -> str | None:
    if args.grammar_file is not None:
        return read_text_file(args.grammar_file)
    schema = args.json_schema
    if args.json_schema_file is not None:
        schema = read_text_file(args.json_schema_file)
    if schema is None:
        return str(args.grammar) if args.grammar is not None else None
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"JSON schema: it is no JSON: {e}") from None
    shape = {"type": "json_object", "schema": parsed} if parsed else {"type": "json_object"}
    return response_grammar(shape)


def system_prompt(args: argparse.Namespace) -> str | None:
    """The system message; None to keep what there is.

    Raises:
        ValueError: it is given twice.
        FormatError, OSError: its file cannot be read.
    """
    if args.system_prompt_file is None:
        return args.system_prompt or None
    if args.system_prompt is not None:
        raise ValueError("-sys and -sysf both give a system message: use one")
    return read_text_file(args.system_prompt_file).strip() or None


def set_template(model: Sardine, path: str | None) -> None:
    """Replaces the file's chat template.

    Raises:
        FormatError, OSError: the template's file cannot be read, or does not parse.
    """
    if path is not None:
        model.chat_template = ChatTemplate(model.model, read_text_file(path))
