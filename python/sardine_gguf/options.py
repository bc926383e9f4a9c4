"""Options of a generation: their names, and what of llama-cpp-python's is not supported and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from sardine_gguf.arguments import integer, logit_bias
from sardine_gguf.expert_settings import ExpertSpec
from sardine_gguf.sampler_order import sampler_order
from sardine_gguf.sampling import SAMPLING_NAMES

ReasoningFormat = Literal["auto", "deepseek", "none"]


class GenerationOptions(TypedDict, total=False):
    """Options of a generation. One that is left out, or None, takes the model's `sampling`.

    Keys:
        max_tokens: None, like a negative number, goes on to the end of the context; 0 gives no token.
        stop: text, or texts, that end the answer and are not part of it.
        reasoning_budget: tokens of thought at most, after which the end of the thoughts is forced and the
            answer begins; 0 allows none; -1, like None, sets no limit.
        reasoning_format: "auto" and "deepseek" give thoughts apart from the answer (as `reasoning_content`);
            "none" leaves them in it, between the think tokens' names.
        experts: settings of experts for this call, as `Sardine.experts` takes them; {} lets the router
            choose. Left out, or None, takes the context's own.
        others: see SamplingOptions; keys of logit_bias may be digits, and temp is temperature.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    reasoning_budget: int | None
    reasoning_format: ReasoningFormat | None
    experts: ExpertSpec | None
    temperature: float | None
    temp: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repeat_last_n: int | None
    mirostat_mode: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    grammar: str | None
    samplers: str | Sequence[str] | None
    seed: int | None


# Arguments that code for other libraries gives: the values that change nothing, and why others are refused.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": ((None,), "filling in the middle needs a model trained for it"),
    "tfs_z": ((1.0, None), "llama.cpp has removed tail-free sampling"),
    "stopping_criteria": ((None,), "use stop, or leave the loop over a stream"),
    "logits_processor": ((None,), "use logit_bias or grammar"),
    "functions": ((None, []), "tools are not supported"),
    "function_call": ((None, "none"), "tools are not supported"),
    "tools": ((None, []), "tools are not supported"),
    "tool_choice": ((None, "none"), "tools are not supported"),
    "reset": ((True, None), "a generation begins with the prompt: give all of its tokens"),
    "idx": ((None,), "a token is drawn from the last logits; eval() returns all of them"),
    "n": ((1, None), "call again with another seed"),
    "best_of": ((1, None), "call again with another seed"),
    "penalize_nl": ((True, None), "llama.cpp has removed it: line ends count as any token"),
}


def sampling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options among the arguments of a call, those that are None left out.

    Raises:
        TypeError: an argument has no meaning here.
        ValueError: an argument has one elsewhere, but is not supported.
    """
    found = {}
    if options.get("temperature") is not None and options.get("temp") is not None:
        raise ValueError("temperature and temp are both given: they are the same, use one of them")
    for name, value in options.items():
        name = "temperature" if name == "temp" else name
        if name in _UNSUPPORTED:
            neutral, why = _UNSUPPORTED[name]
            if not any(value is v or (type(value) is type(v) and value == v) for v in neutral):
                raise ValueError(f"{name} is not supported: {why}")
        elif name not in SAMPLING_NAMES:
            near = difflib.get_close_matches(name, SAMPLING_NAMES)
            hint = f": did you mean {near[0]}?" if near else ""
            raise TypeError(f"there is no option '{name}'{hint}")
        elif value is not None:
            found[name] = value
    if "logit_bias" in found:
        found["logit_bias"] = logit_bias(found["logit_bias"])
    if "samplers" in found:
        found["samplers"] = sampler_order(found["samplers"])
    if "grammar" in found:
        found["grammar"] = grammar_text(found["grammar"])
    return found


def grammar_text(grammar: Any) -> str:
    """GBNF text, given as such or as llama_cpp's LlamaGrammar."""
    text = getattr(grammar, "_grammar", grammar)
    if not isinstance(text, str):
        raise TypeError(f"grammar is a {type(grammar).__name__}, expected GBNF text")
    if not text.strip():
        raise ValueError("the grammar is empty")
    return text


def token_limit(max_tokens: int | None) -> int | None:
    """`max_tokens`, None for no limit.

    Raises:
        TypeError: it is no whole number.
    """
    if max_tokens is None:
        return None
    n = integer("max_tokens", max_tokens, "a number of tokens, or None or -1 for no limit")
    return None if n < 0 else n
