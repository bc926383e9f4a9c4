"""Generations as OpenAI's completion objects and chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from sardine_gguf.generation import Generation
from sardine_gguf.logprobs import TokenLogprob, chat_logprobs, completion_logprobs


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts, cached prompt tokens among them; like OpenAI's without the token that ends a text."""
    t = generation.timings
    completion_tokens = t.completion_tokens - generation.met_end_token
    return {
        "prompt_tokens": t.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": t.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": t.cached_tokens},
    }


def _choice(**parts: Any) -> dict[str, Any]:
    return {"index": 0, "logprobs": None, "finish_reason": None, **parts}


# ---- text completions ----


def completion(
    generation: Generation, model: str, *, prompt: str, echo: bool, logprobs: bool
) -> dict[str, Any]:
    """Runs the generation to its end.

    Args:
        prompt: the prompt's text, which `echo` puts before the answer.
        logprobs: tell those that the generation was asked for, of the prompt too if it has them.
    """
    text = "".join(piece for _, piece in generation)
    found = None
    if logprobs:
        answer = completion_logprobs(generation.take_logprobs(), len(prompt))
        first = completion_logprobs(generation.prompt_entries, 0)
        found = {k: first[k] + answer[k] for k in answer}
    choice = _choice(
        text=(prompt if echo else "") + text,
        logprobs=found,
        finish_reason=generation.finish_reason,
    )
    head = _head("cmpl", "text_completion", model)
    return {**head, "choices": [choice], "usage": usage(generation)}


def completion_chunks(
    generation: Generation, model: str, *, prompt: str, echo: bool, logprobs: bool
) -> Iterator[dict[str, Any]]:
    """A chunk a piece, then the finish reason with the usage; with echo, the prompt first."""
    head = _head("cmpl", "text_completion", model)

    def chunk(
        text: str, tokens: list[TokenLogprob], before: int = len(prompt), finish: str | None = None
    ) -> dict[str, Any]:
        found = completion_logprobs(tokens, before) if logprobs and tokens else None
        return {**head, "choices": [_choice(text=text, logprobs=found, finish_reason=finish)]}

    try:
        if echo:
            first = next(generation, None)  # evaluates the prompt
            yield chunk(prompt, generation.prompt_entries, 0)
            if first:
                yield chunk(first[1], generation.take_logprobs())
        for _, piece in generation:
            yield chunk(piece, generation.take_logprobs())
        last = chunk("", generation.take_logprobs(), finish=generation.finish_reason)
        yield {**last, "usage": usage(generation)}
    finally:
        generation.close()


# ---- chats ----


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def chat_completion(
    generation: Generation, model: str, *, logprobs: bool = False
) -> dict[str, Any]:
    """Runs the generation to its end."""
    text = {"content": "", "reasoning": ""}
    for channel, piece in generation:
        text[channel] += piece
    message: dict[str, Any] = {"role": "assistant", "content": text["content"]}
    if text["reasoning"]:
        message |= _reasoning(text["reasoning"])
    choice = _choice(
        message=message,
        logprobs=chat_logprobs(generation.take_logprobs()) if logprobs else None,
        finish_reason=generation.finish_reason,
    )
    head = _head("chatcmpl", "chat.completion", model)
    return {**head, "choices": [choice], "usage": usage(generation)}


def chat_completion_chunks(
    generation: Generation, model: str, *, logprobs: bool = False
) -> Iterator[dict[str, Any]]:
    """The role first, then a chunk a piece, then the finish reason with the usage."""
    head = _head("chatcmpl", "chat.completion.chunk", model)

    def chunk(
        delta: dict[str, str], tokens: list[TokenLogprob], finish: str | None = None
    ) -> dict[str, Any]:
        found = chat_logprobs(tokens) if logprobs and tokens else None
        return {**head, "choices": [_choice(delta=delta, logprobs=found, finish_reason=finish)]}

    try:
        yield chunk({"role": "assistant", "content": ""}, [])
        for channel, piece in generation:
            if channel == "content":
                yield chunk({"content": piece}, generation.take_logprobs())
            else:
                yield chunk(_reasoning(piece), [])
        last = chunk({}, generation.take_logprobs(), generation.finish_reason)
        yield {**last, "usage": usage(generation)}
    finally:
        generation.close()
