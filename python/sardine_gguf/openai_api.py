"""The methods of Sardine that return OpenAI's objects, named as in llama-cpp-python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from sardine_gguf.arguments import flag, integer, text, token_ids
from sardine_gguf.chat import Message
from sardine_gguf.completion import (
    chat_completion,
    chat_completion_chunks,
    completion,
    completion_chunks,
)
from sardine_gguf.generating import GenerationMethods
from sardine_gguf.options import GenerationOptions
from sardine_gguf.response_format import response_grammar

MAX_TOP_LOGPROBS = 20  # OpenAI's


class OpenAIMethods(GenerationMethods):
    """Completions and chat completions on top of `start` and `start_chat`."""

    # ---- text ----

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = ...,
        logprobs: int | None = ...,
        echo: bool = ...,
        response_format: Mapping[str, Any] | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any]: ...
    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[True],
        logprobs: int | None = ...,
        echo: bool = ...,
        response_format: Mapping[str, Any] | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[dict[str, Any]]: ...
    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool,
        logprobs: int | None = ...,
        echo: bool = ...,
        response_format: Mapping[str, Any] | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]: ...
    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        logprobs: int | None = None,
        echo: bool = False,
        response_format: Mapping[str, Any] | None = None,
        model: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """The text that continues a prompt in the shape of OpenAI's Completion, or an iterator over chunks.

        Args:
            prompt: text (BOS is added if the model wants one; names of control tokens stay text), or ids.
            stream: yield chunks; the last has the finish reason and the usage.
            logprobs: tell each token's log probability and those of this many of the likeliest.
            echo: the prompt goes before the answer; with logprobs, those of the prompt's tokens too.
            response_format: see `sardine_gguf.response_format.response_grammar`.
            model: name in the result; None takes the file's.
            options: see GenerationOptions.

        Raises:
            TypeError: an option that is not known or of another type.
            ValueError: an option out of range, or of llama-cpp-python's but not supported (with the reason).
            ContextOverflow: the prompt is longer than the context.
        """
        since = self.session.n_cancels
        stream, echo = flag("stream", stream), flag("echo", echo)
        name = self._name(model)
        if not isinstance(prompt, str):
            prompt = token_ids("prompt", prompt, self.model.hparams["n_vocab"])
        prompt_text = prompt if isinstance(prompt, str) else self.detokenize(prompt)
        generation = self.start(
            prompt,
            logprobs=logprobs,
            prompt_logprobs=echo and logprobs is not None,
            **_resolve(options, response_format),
        )
        self._stop_if_cancelled(since)
        told = logprobs is not None
        if stream:
            return completion_chunks(generation, name, prompt=prompt_text, echo=echo, logprobs=told)
        return completion(generation, name, prompt=prompt_text, echo=echo, logprobs=told)

    __call__ = create_completion

    # ---- chats ----

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = ...,
        logprobs: bool | None = ...,
        top_logprobs: int | None = ...,
        response_format: Mapping[str, Any] | None = ...,
        think_prompt: bool | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any]: ...
    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        logprobs: bool | None = ...,
        top_logprobs: int | None = ...,
        response_format: Mapping[str, Any] | None = ...,
        think_prompt: bool | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[dict[str, Any]]: ...
    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: bool,
        logprobs: bool | None = ...,
        top_logprobs: int | None = ...,
        response_format: Mapping[str, Any] | None = ...,
        think_prompt: bool | None = ...,
        model: str | None = ...,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]: ...
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        think_prompt: bool | None = None,
        model: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """The next assistant message in the shape of OpenAI's ChatCompletion, or an iterator over chunks.

        Thoughts come as `reasoning_content` and, the same, `reasoning`. Evaluated tokens that the
        conversation begins with are kept. A repeated call then sums in another order than the first, which
        may show in the last digits of a logit; reset() before it avoids that.

        Args:
            messages: {"role": ..., "content": text or blocks}, as the model's template takes them.
            stream: yield chunks; the last has the finish reason and the usage.
            logprobs: tell the log probability of each token of the content.
            top_logprobs: and of this many of the likeliest in its place, 0 to 20; needs logprobs.
            response_format: see `sardine_gguf.response_format.response_grammar`. With it, or a grammar, the
                answer begins at once, without thoughts.
            think_prompt: see `start_chat`.
            model: name in the result; None takes the file's.
            options: see GenerationOptions.

        Raises:
            As `create_completion`.
        """
        since = self.session.n_cancels
        stream = flag("stream", stream)
        logprobs = None if logprobs is None else flag("logprobs", logprobs)
        name = self._name(model)
        if top_logprobs is not None:
            expected = "a number of tokens"
            integer("top_logprobs", top_logprobs, expected, least=0, most=MAX_TOP_LOGPROBS)
            if not logprobs:
                raise ValueError(f"top_logprobs is {top_logprobs}, which needs logprobs=True")
        n_top = (top_logprobs or 0) if logprobs else None
        generation = self.start_chat(
            messages,
            think_prompt=think_prompt,
            logprobs=n_top,
            **_resolve(options, response_format),
        )
        self._stop_if_cancelled(since)
        told = bool(logprobs)
        if stream:
            return chat_completion_chunks(generation, name, logprobs=told)
        return chat_completion(generation, name, logprobs=told)

    def create_chat_completion_openai_v1(
        self, messages: Sequence[Message], *, stream: bool = False, **arguments: Any
    ) -> Any:
        """create_chat_completion as objects of the `openai` package, which must be installed.

        Returns:
            an openai.types.chat.ChatCompletion; with `stream` an iterator over ChatCompletionChunk.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            raise ImportError(
                "create_chat_completion_openai_v1 needs the openai package: pip install openai"
            ) from None
        if stream:
            chunks = self.create_chat_completion(messages, stream=True, **arguments)
            return map(ChatCompletionChunk.model_validate, chunks)
        return ChatCompletion.model_validate(self.create_chat_completion(messages, **arguments))

    def _name(self, given: str | None) -> str:
        return Path(self.model.path).name if given is None else text("model", given)


def _resolve(
    options: GenerationOptions, response_format: Mapping[str, Any] | None
) -> GenerationOptions:
    grammar = response_grammar(response_format)
    if grammar is not None:
        if options.get("grammar") is not None:
            raise ValueError("grammar and response_format are both given: use one of them")
        options["grammar"] = grammar
    return options
