"""Counts and rates of a turn, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sardine_gguf.chat_turn import Turn
from sardine_gguf.units import count_text, size_text


class Context(Protocol):
    """What is told of the context."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...


def stats_parts(turn: Turn, context: Context, more: Sequence[str] = ()) -> list[str]:
    """The parts of one line: prompt, time to the first token, answer, context, and `more`.

    Of a turn that was stopped while its prompt was read there are no rates.
    """
    t = turn.generation.timings
    cached = f", {t.cached_tokens} cached" if t.cached_tokens else ""
    prompt = f"{count_text(t.prompt_tokens, 'prompt token')}{cached}"
    used = f"context {context.n_tokens}/{context.n_ctx}"
    if stopped_in_prompt(turn):
        parts = [f"{prompt}, not read to the end", used]
    else:
        parts = [f"{prompt}, {t.prompt_per_second:.1f} t/s"]
        if turn.first_seconds is not None:
            parts.append(f"first {turn.first_seconds:.2f} s")
        parts.append(
            f"{count_text(t.completion_tokens, 'token')}, {t.completion_per_second:.1f} t/s"
        )
        parts += [used, *(p for p in more if p)]
    parts[0] = f"[{parts[0]}"
    parts[-1] += "]"
    return parts


def stopped_in_prompt(turn: Turn) -> bool:
    """Whether a turn was interrupted before its first token."""
    return turn.interrupted and not turn.generation.timings.completion_tokens


def peak_memory() -> int:
    """Bytes of memory that this process held at its peak, mapped pages of the model among them."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stats_table(turn: Turn | None, context: Context, more: Sequence[str] = ()) -> str:
    """The same and more in lines; without a turn the context alone."""
    rows: list[tuple[str, str]] = []
    if turn and stopped_in_prompt(turn):
        n = count_text(turn.generation.timings.prompt_tokens, "token")
        rows.append(("prompt", f"{n}, stopped before all of them were read"))
        more = ()
    elif turn:
        t = turn.generation.timings
        first = "none" if turn.first_seconds is None else f"after {turn.first_seconds:.3f} s"
        new = t.prompt_tokens - t.cached_tokens
        rows += [
            ("prompt", f"{count_text(t.prompt_tokens, 'token')}, {t.cached_tokens} of them cached"),
            ("", f"{new} evaluated in {t.prompt_seconds:.3f} s, {t.prompt_per_second:.1f} t/s"),
            ("first token", first),
            (
                "answer",
                f"{count_text(t.completion_tokens, 'token')} in {t.completion_seconds:.3f} s, "
                f"{t.completion_per_second:.1f} t/s",
            ),
        ]
    share = context.n_tokens / context.n_ctx
    rows += [
        ("context", f"{context.n_tokens} of {count_text(context.n_ctx, 'token')} ({share:.0%})"),
        ("memory", f"{size_text(peak_memory())} at the peak, the model's pages included"),
        *(("experts", part) for part in more if part),
    ]
    return "\n".join(f"{name:12} {value}" for name, value in rows)
