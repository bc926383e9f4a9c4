"""Generations as OpenAI's chat completion objects and chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from sardine_gguf.generation import Generation


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts, cached prompt tokens among them."""
    t = generation.timings
    return {
        "prompt_tokens": t.prompt_tokens,
        "completion_tokens": t.completion_tokens,
        "total_tokens": t.prompt_tokens + t.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": t.cached_tokens},
    }


def chat_completion(generation: Generation, model: str) -> dict[str, Any]:
    """Runs the generation to its end."""
    text = {"content": "", "reasoning": ""}
    for channel, piece in generation:
        text[channel] += piece
    message: dict[str, Any] = {"role": "assistant", "content": text["content"]}
    if text["reasoning"]:
        message["reasoning_content"] = text["reasoning"]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": generation.finish_reason,
    }
    return {
        **_head("chat.completion", model),
        "choices": [choice],
        "usage": usage(generation),
    }


def chat_completion_chunks(generation: Generation, model: str) -> Iterator[dict[str, Any]]:
    """The role first, then a chunk a piece, then the finish reason with the usage."""
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**head, "choices": [choice]}

    try:
        yield chunk({"role": "assistant", "content": ""})
        for channel, piece in generation:
            yield chunk({"content" if channel == "content" else "reasoning_content": piece})
        yield {**chunk({}, generation.finish_reason), "usage": usage(generation)}
    finally:
        generation.close()
