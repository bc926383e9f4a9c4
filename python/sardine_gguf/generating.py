"""Generating text and chat answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Unpack, overload

from sardine_gguf.arguments import flag, stop_texts, token_ids
from sardine_gguf.chat import ChatTemplate, Message
from sardine_gguf.expert_methods import ExpertMethods
from sardine_gguf.expert_settings import ExpertSpec
from sardine_gguf.generation import Generation, TokenLoop
from sardine_gguf.logprobs import TokenLogprob
from sardine_gguf.options import GenerationOptions, sampling_options, token_limit
from sardine_gguf.sampling import SamplingOptions
from sardine_gguf.thoughts import ThoughtBudget
from sardine_gguf.tokens import TokenMethods


class GenerationMethods(TokenMethods, ExpertMethods):
    """Generations, as objects, text, pieces of text or tokens.

    Attributes:
        sampling: the options that a call does not give.
    """

    sampling: SamplingOptions

    def start(
        self,
        prompt: str | Sequence[int],
        *,
        think: tuple[int, int] | None = None,
        reuse_prefix: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """A generation that has not begun; iterate over it. The prompt takes the context's place.

        Args:
            prompt: text (BOS is added if the model wants one) or token ids.
            think: ids of the tokens around thoughts, which then come on the channel "reasoning".
            reuse_prefix: keep the evaluated tokens that the prompt begins with. Without it they are kept
                only when the prompt continues all of them, so that equal calls give equal text.
            logprobs: how many of the likeliest are told of each token of the content; None tells nothing.
            prompt_logprobs: and of the prompt, which is evaluated anew.
            options: see GenerationOptions.

        Raises:
            TypeError: an option that is not known or of another type.
            ValueError: an option out of range.
            ContextOverflow: the prompt is longer than the context.
            Cancelled: cancel() was called meanwhile.
        """
        since = self.session.n_cancels
        max_tokens = token_limit(options.pop("max_tokens", None))
        stop = stop_texts(options.pop("stop", None))
        budget, experts = options.pop("reasoning_budget", None), options.pop("experts", None)
        reasoning_format = options.pop("reasoning_format", None) or "auto"
        if reasoning_format not in ("auto", "deepseek", "none"):
            raise ValueError(
                f"reasoning_format is {reasoning_format!r}, expected auto, deepseek or none"
            )
        sampling = self.sampling.override(**sampling_options(options))
        if isinstance(prompt, str):
            tokens = self._prompt_tokens(prompt)
        else:
            tokens = token_ids("prompt", prompt, self.model.hparams["n_vocab"])
        around = think or self.think_tokens
        thoughts = ThoughtBudget(around or (-1, -1), -1 if budget is None else budget, tokens)
        loop = TokenLoop(
            self,
            tokens,
            sampling.sampler(self.model, self.session.n_ctx),
            max_tokens=max_tokens,
            stop=stop,
            think=around if reasoning_format == "none" else think,
            split_thoughts=reasoning_format != "none",
            thoughts=thoughts,
            reuse_prefix=reuse_prefix,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            experts=self._experts if experts is None else self.expert_settings(experts),
        )
        self._stop_if_cancelled(since)
        self._follow(loop)
        return Generation(loop)

    @overload
    def generate(self, prompt: str, **options: Unpack[GenerationOptions]) -> str: ...
    @overload
    def generate(
        self, prompt: Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[int]: ...
    def generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> str | Iterator[int]:
        """The text that continues a text; for token ids, `generate_tokens`, as in llama-cpp-python.

        Options as in `start`.
        """
        if isinstance(prompt, str):
            return "".join(self.stream_generate(prompt, **options))
        return self.generate_tokens(prompt, **options)

    def stream_generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """Yields the same text in pieces of whole characters. Leaving the loop stops the work."""
        return (piece for _, piece in self.start(prompt, **options))

    def generate_tokens(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[int]:
        """Yields the ids of the tokens that continue a prompt, the one that ends the text left out."""
        if stop_texts(options.get("stop")):
            raise ValueError("stop is about text, and there is none here: use stream_generate()")
        return self.start(prompt, **options).sampled_tokens()

    def score(
        self, text: str | Sequence[int], *, top: int = 0, experts: ExpertSpec | None = None
    ) -> list[TokenLogprob]:
        """Log probabilities of a text's tokens, each by those before it. The text takes the context's place.

        Args:
            text: as the prompt of `start`.
            top: tell this many of the likeliest tokens there, too.
            experts: settings of experts for this call; None takes the context's own.

        Returns:
            one a token but for the BOS; the first one's logprob (natural logarithm) is None.

        Raises:
            TypeError, ValueError, ContextOverflow: as `start`.
        """
        generation = self.start(
            text, max_tokens=0, logprobs=top, prompt_logprobs=True, experts=experts
        )
        for _ in generation:
            pass
        return generation.prompt_entries

    def sample(self, **options: Unpack[GenerationOptions]) -> int:
        """A token drawn from the logits after the context's last one. Options but max_tokens and stop.

        Raises:
            ValueError: nothing is evaluated, or an option is out of range.
        """
        sampling = self.sampling.override(**sampling_options(options))
        sampler = sampling.sampler(self.model, self.session.n_ctx)
        sampler.accept_prompt(self.session.tokens)
        return sampler.sample(self.session)

    def set_seed(self, seed: int) -> None:
        """Changes the default seed."""
        self.sampling = self.sampling.override(seed=seed)

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
        self,
        messages: Sequence[Message],
        *,
        think_prompt: bool | None = None,
        logprobs: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """The generation of the next assistant message; evaluates only what is new since the last turn.

        Args:
            messages: {"role": ..., "content": text or blocks}, as the model's template takes them.
            think_prompt: add the request to think first, which the default system message of a reasoning
                model's template makes, to a system message among `messages`, which would replace it. None
                does so where the template makes it and no grammar rules thoughts out.
            logprobs, options: as in `start`.

        Raises:
            ValueError: think_prompt is True, and the template makes no such request.
        """
        since = self.session.n_cancels
        template = self.chat_template
        if think_prompt is not None:
            think_prompt = flag("think_prompt", think_prompt)
        if think_prompt and template.think_prompt is None:
            raise ValueError(
                "think_prompt is True, but the chat template has no default system message that asks for "
                "thoughts: write the request into the system message"
            )
        if think_prompt or (think_prompt is None and not options.get("grammar")):
            messages = template.with_think_prompt(messages)
        prompt = template.encode(messages)
        self._stop_if_cancelled(since)
        return self.start(
            prompt,
            think=self.think_tokens,
            reuse_prefix=True,
            logprobs=logprobs,
            **options,
        )
