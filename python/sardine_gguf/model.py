"""The model class of the public API."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from sardine_gguf import _native
from sardine_gguf.chat import ChatTemplate, Message
from sardine_gguf.completion import chat_completion, chat_completion_chunks
from sardine_gguf.generation import Generation
from sardine_gguf.sampling import SamplingOptions
from sardine_gguf.thoughts import ThoughtBudget

DeltaMode = Literal["sparse", "gain", "off"]
ReasoningFormat = Literal["auto", "deepseek", "none"]


def _printable(value: Any) -> Any:
    """Bytes of a text that were not UTF-8, held as surrogates, as replacement characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [_printable(v) for v in value] if isinstance(value, list) else value


class GenerationOptions(TypedDict, total=False):
    """Options of a generation; `Sardine.start` says what they mean and what leaving one out does."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    reasoning_budget: int | None
    reasoning_format: ReasoningFormat


def _stop_list(stop: str | Sequence[str] | None) -> list[str]:
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else list(stop)


class Sardine:
    """A SaRDinE model (or its plain base) from one GGUF file, with one context.

    Args:
        path: the GGUF file.
        n_ctx: context length in tokens; None takes the model's own, at most 8192.
        n_batch: tokens evaluated at a time in a prompt.
        n_threads: CPU threads; None takes every processor that this process may use.
        n_gpu_layers: 0; this build computes on the CPU.
        delta_mode: "sparse" (experts change the FFN's matrices), "gain" (they scale its output, as the
            published code does), "off" (the base alone); None takes the file's.
        kv_type: type of cached keys and values, "f16" or "f32".
        seed: default seed of `generate` and the chat; negative draws a new one each time.
        verbose: print what was loaded to standard error.

    Raises:
        FormatError: the file is damaged, of another kind, or not a model that this runtime computes.
        OSError: the file cannot be read.
        InsufficientMemory: the context does not fit the free memory.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        delta_mode: DeltaMode | None = None,
        kv_type: Literal["f16", "f32"] = "f16",
        seed: int = -1,
        verbose: bool = False,
    ) -> None:
        self._session: _native.Session | None = None
        if n_gpu_layers != 0:
            raise ValueError(
                f"n_gpu_layers is {n_gpu_layers}, but this build computes on the CPU only: use 0"
            )
        for name, value in (("n_ctx", n_ctx), ("n_threads", n_threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1, or None for the default")
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError("the path contains a null byte")
        self._model = _native.Model(encoded, n_threads=n_threads or 0)
        experts = self._model.experts
        self._delta_mode = delta_mode or (
            experts["delta_mode"] if experts["expert_count"] else "off"
        )
        self._session = _native.Session(
            self._model,
            n_ctx=n_ctx or 0,
            n_batch=n_batch,
            n_threads=n_threads or 0,
            kv_type=kv_type,
            delta_mode=self._delta_mode,
        )
        self.sampling = SamplingOptions.from_file(self._model.file, seed)
        if verbose:
            print(self.describe(), file=sys.stderr)

    # ---- life ----

    def close(self) -> None:
        """Frees the context and the mapping; later calls that need them raise ValueError.

        Closing twice is fine.
        """
        self._session = None
        for cached in ("chat_template", "metadata", "think_tokens"):
            self.__dict__.pop(cached, None)
        if hasattr(self, "_model"):
            del self._model

    def __enter__(self) -> Sardine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def session(self) -> _native.Session:
        """The native context."""
        if self._session is None:
            raise ValueError("this model is closed")
        return self._session

    @property
    def model(self) -> _native.Model:
        """The native model."""
        if self._session is None:
            raise ValueError("this model is closed")
        return self._model

    # ---- facts ----

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Every key of the file with its value."""
        return {key: _printable(value) for key, (_, value) in self.model.file.kv.items()}

    @property
    def delta_mode(self) -> str:
        """The mode that runs: "sparse", "gain" or "off"."""
        return self._delta_mode

    @property
    def n_ctx(self) -> int:
        """Context length in tokens."""
        return self.session.n_ctx

    @property
    def n_tokens(self) -> int:
        """Tokens in the context now."""
        return self.session.n_tokens

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.model.hparams["n_vocab"])

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts, in the order of their numbers; empty for a plain base."""
        return list(self.model.experts["names"])

    def describe(self) -> str:
        """The file, the base, the experts and the context, in three lines for people."""
        h, e = self.model.hparams, self.model.experts
        path = Path(self.model.path)
        name = _printable(self.model.file.get("general.name")) or path.stem
        experts = (
            f"experts: {e['expert_count']}, {e['expert_used_count']} a token, in {len(e['layers'])} of "
            f"{h['n_layer']} layers ({', '.join(e['names'])})"
            if e["expert_count"]
            else "experts: none (a plain base model)"
        )
        return "\n".join(
            (
                f"model:   {name} ({h['arch']}, {h['n_layer']} layers of {h['n_embd']}), "
                f"{path.stat().st_size / 1e6:.1f} MB, {path.name}",
                experts,
                f"runs:    {self.delta_mode} on the CPU, {self.session.n_threads} threads, "
                f"context {self.n_ctx} tokens, {self.session.memory_bytes / 1e6:.0f} MB for it",
            )
        )

    # ---- tokens ----

    def tokenize(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            add_bos: put BOS first, if the model wants one.
            special: read the names of control tokens in the text as those tokens.
        """
        return self.model.tokenize(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids; control tokens are left out unless `special`."""
        data = b"".join(self.model.piece(int(t), special) for t in tokens)
        return codecs.decode(data, "utf-8", "replace")

    # ---- evaluation ----

    def eval(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens to the context and returns the logits after each, float32 [n_tokens, n_vocab].

        Raises:
            ContextOverflow: they do not fit; nothing was evaluated.
            ValueError: there are none, or one is no token id.
            BusyError: another thread is evaluating.
        """
        return self.session.eval([int(t) for t in tokens])

    def routing(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Experts of the last evaluation and their weights, each [n_layers_with_experts, n_tokens, top_k].

        Weights sum to 1, the largest first. Raises ValueError in mode "off", where nothing is routed.
        """
        if self.delta_mode == "off":
            raise ValueError('nothing is routed in delta_mode "off": load with "sparse" or "gain"')
        return self.session.routing()

    def reset(self) -> None:
        """Empties the context."""
        self.session.truncate(0)

    def cancel(self) -> None:
        """Stops the evaluation that runs in another thread, which raises Cancelled there."""
        self.session.cancel()

    # ---- generation ----

    def start(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        reasoning_budget: int | None = None,
        reasoning_format: ReasoningFormat = "auto",
        think: tuple[int, int] | None = None,
        reuse_prefix: bool = False,
    ) -> Generation:
        """A generation that has not begun; iterate over it. The prompt takes the context's place.

        Args:
            prompt: text (BOS is added if the model wants one) or token ids.
            max_tokens: None goes on to the end of the context.
            temperature, top_k, top_p, min_p, seed: see SamplingOptions; None takes `self.sampling`'s.
            stop: text that ends the answer and is not part of it.
            reasoning_budget: tokens of thought at most, after which the end of the thoughts is forced and the
                answer begins; 0 allows none; -1, like None, sets no limit.
            reasoning_format: "auto" and "deepseek" give thoughts apart from the answer (as
                `reasoning_content`); "none" leaves them in it, between the think tokens' names.
            think: ids of the tokens around thoughts, which then come on the channel "reasoning".
            reuse_prefix: keep the evaluated tokens that the prompt begins with. Without it they are kept
                only when the prompt continues all of them, so that equal calls give equal text.
        """
        if reasoning_format not in ("auto", "deepseek", "none"):
            raise ValueError(
                f"reasoning_format is {reasoning_format!r}, expected auto, deepseek or none"
            )
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
        around = think or self.think_tokens
        thoughts = ThoughtBudget(
            around or (-1, -1), -1 if reasoning_budget is None else reasoning_budget, tokens
        )
        options = self.sampling.override(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
        )
        return Generation(
            self.model,
            self.session,
            tokens,
            options.sampler(),
            max_tokens=max_tokens,
            stop=_stop_list(stop),
            think=around if reasoning_format == "none" else think,
            split_thoughts=reasoning_format != "none",
            thoughts=thoughts,
            reuse_prefix=reuse_prefix,
        )

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> str:
        """The text that continues a prompt. Options as in `start`."""
        return "".join(self.stream_generate(prompt, **options))

    def stream_generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """Yields the same text in pieces of whole characters. Leaving the loop stops the work."""
        return (piece for _, piece in self.start(prompt, **options))

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The file's chat template."""
        return ChatTemplate(self.model)

    @cached_property
    def think_tokens(self) -> tuple[int, int] | None:
        """Ids of [THINK] and [/THINK], if the vocabulary has them as control tokens."""
        control = self.model.control_tokens
        if "[THINK]" in control and "[/THINK]" in control:
            return control["[THINK]"], control["[/THINK]"]
        return None

    def start_chat(
        self, messages: Sequence[Message], **options: Unpack[GenerationOptions]
    ) -> Generation:
        """The generation of the next assistant message; evaluates only what is new since the last turn.

        Options as in `start`.
        """
        return self.start(
            self.chat_template.encode(messages),
            think=self.think_tokens,
            reuse_prefix=True,
            **options,
        )

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = ...,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any]: ...
    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Iterator[dict[str, Any]]: ...
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """The next assistant message in OpenAI's shape, or an iterator over chunks of it.

        Evaluated tokens that the conversation begins with are kept. A repeated call then sums in another
        order than the first, which may show in the last digits of a logit; reset() before it avoids that.

        Args:
            messages: {"role": ..., "content": text or blocks}, as the model's template takes them.
            stream: yield chunks; the last has the finish reason and the usage.
            options: as in `start`; any other is a TypeError.
        """
        generation = self.start_chat(messages, **options)
        name = Path(self.model.path).name
        if stream:
            return chat_completion_chunks(generation, name)
        return chat_completion(generation, name)
