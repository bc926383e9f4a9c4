"""The model class of the public API."""

from __future__ import annotations

import codecs
import copy
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from sardine_gguf import _native
from sardine_gguf.chat import ChatTemplate, Message
from sardine_gguf.context import (
    ContextLength,
    ContextOptions,
    KvType,
    encoded_path,
    load_state,
    save_state,
)
from sardine_gguf.generation import Generation
from sardine_gguf.llama_arguments import MISSING_ATTRIBUTES, llama_arguments
from sardine_gguf.model_facts import facts
from sardine_gguf.openai_api import OpenAIMethods
from sardine_gguf.options import GenerationOptions, sampling_options, stop_list
from sardine_gguf.sampling import SamplingOptions
from sardine_gguf.thoughts import ThoughtBudget

DeltaMode = Literal["sparse", "gain", "off"]


def _printable(value: Any) -> Any:
    """Bytes of a text that were not UTF-8, held as surrogates, as replacement characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [_printable(v) for v in value] if isinstance(value, list) else value


class Count(int):
    """A number of something, which code written for llama-cpp-python may also call: n_ctx, n_ctx()."""

    def __call__(self) -> int:
        return int(self)


class Sardine(OpenAIMethods):
    """A SaRDinE model (or its plain base) from one GGUF file, with one context.

    `new_context` makes more contexts on the same weights. A context evaluates for one thread at a time:
    a call from another one meanwhile raises BusyError.

    Args:
        path, model_path: the GGUF file; the second is llama-cpp-python's name for it.
        adapter: a file with the experts alone (convert-sardine --adapter), for a path that is their base.
        n_ctx: context length in tokens; None takes the model's own, at most 8192; "auto" the longest, up
            to the model's own, whose memory is free beside the weights'.
        n_batch: tokens evaluated at a time in a prompt.
        n_threads: CPU threads; None takes every processor that this process may use.
        n_gpu_layers: 0; this build computes on the CPU.
        delta_mode: "sparse" (experts change the FFN's matrices), "gain" (they scale its output, as the
            published code does), "off" (the base alone); None takes the file's.
        kv_type: type of cached keys and values: "f16", "f32", or "q8_0", which takes half of f16's
            memory and needs a head dimension that is a multiple of 32.
        seed: default seed of `generate` and the chat; negative draws a new one each time.
        verbose: print what was loaded to standard error.
        llama: other arguments of llama-cpp-python's Llama. type_k and type_v (the same) are read as kv_type,
            last_n_tokens_size as sampling.repeat_last_n; others are taken where they ask for what is done
            anyway, and refused elsewhere.

    Raises:
        FormatError: a file is damaged, of another kind, not a model that this runtime computes, or the
            adapter was made for a base of another shape.
        OSError: the file cannot be read.
        InsufficientMemory: the context does not fit the free memory; it names the bytes needed and free,
            and nothing was allocated.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        model_path: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        n_ctx: ContextLength = None,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        delta_mode: DeltaMode | None = None,
        kv_type: KvType = "f16",
        seed: int = -1,
        verbose: bool = False,
        **llama: Any,
    ) -> None:
        self._session: _native.Session | None = None
        if (path is None) == (model_path is None):
            raise TypeError("give the file as the first argument or as model_path")
        path = model_path if path is None else path
        assert path is not None
        kv_type, sampling = llama_arguments(  # type: ignore[assignment]
            llama, n_batch=n_batch, n_threads=n_threads, kv_type=kv_type
        )
        if n_gpu_layers != 0:
            raise ValueError(
                f"n_gpu_layers is {n_gpu_layers}, but this build computes on the CPU only: use 0"
            )
        options = ContextOptions(n_ctx, n_batch, n_threads, kv_type, delta_mode)
        self._model = _native.Model(
            encoded_path(path),
            n_threads=n_threads or 0,
            adapter=None if adapter is None else encoded_path(adapter),
        )
        if not self._model.adapter_fits_norms():
            warnings.warn(
                f"{os.fspath(adapter or '')}: the base has the right shape, but its norms are not those of "
                f"the model that the experts were made for: is {os.fspath(path)} another finetune?",
                stacklevel=2,
            )
        self._context = options.on(self._model)
        self._session = self._context.open(self._model)
        self.sampling = SamplingOptions.from_file(self._model.file, seed).override(**sampling)
        if verbose:
            print(self.describe(), file=sys.stderr)

    # ---- life ----

    def close(self) -> None:
        """Frees the context, and the mapping with the last context; later calls raise ValueError.

        Closing twice is fine, and other contexts on the model go on.
        """
        self._session = None
        self._forget_cached()
        if hasattr(self, "_model"):
            del self._model

    def _forget_cached(self) -> None:
        for base in type(self).__mro__:
            for name, value in vars(base).items():
                if isinstance(value, cached_property):
                    self.__dict__.pop(name, None)

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

    def new_context(
        self,
        *,
        n_ctx: ContextLength = None,
        n_batch: int | None = None,
        n_threads: int | None = None,
        delta_mode: DeltaMode | None = None,
        kv_type: KvType | None = None,
    ) -> Sardine:
        """Another context on the same weights: keys, values and scratch are its own.

        It has every method of this class, and both may evaluate at the same time in different threads.
        Either may be closed first. Arguments as in the constructor; None takes this context's.

        Raises:
            InsufficientMemory, ValueError: as in the constructor.
        """
        given = {
            "n_ctx": n_ctx,
            "n_batch": n_batch,
            "n_threads": n_threads,
            "delta_mode": delta_mode,
            "kv_type": kv_type,
        }
        options = replace(self._context, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        session = options.open(self.model)
        other = copy.copy(self)
        other._forget_cached()
        other._context, other._session = options, session
        return other

    # ---- facts ----

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Every key of the file with its value.

        With an adapter also its sardine.* and adapter.* keys, and "adapter.path", which no file holds.
        """
        keys = dict(self.model.file.kv)
        if self.model.adapter is not None:
            own = self.model.adapter.kv.items()
            keys |= {k: v for k, v in own if k.startswith(("sardine.", "adapter."))}
            keys["adapter.path"] = ("str", self.model.adapter.path)
        return {key: _printable(value) for key, (_, value) in keys.items()}

    @property
    def adapter(self) -> str | None:
        """Path of the adapter file; None without one."""
        return self.model.adapter.path if self.model.adapter else None

    @property
    def delta_mode(self) -> str:
        """The mode that runs: "sparse", "gain" or "off"."""
        return str(self._context.delta_mode)

    @property
    def kv_type(self) -> str:
        """Type of the cached keys and values: "f16", "f32" or "q8_0"."""
        return self._context.kv_type

    @property
    def n_ctx(self) -> Count:
        """Context length in tokens."""
        return Count(self.session.n_ctx)

    @property
    def n_tokens(self) -> int:
        """Tokens in the context now."""
        return self.session.n_tokens

    @property
    def n_vocab(self) -> Count:
        """Size of the vocabulary."""
        return Count(self.model.hparams["n_vocab"])

    @property
    def n_embd(self) -> Count:
        """Width of the model."""
        return Count(self.model.hparams["n_embd"])

    @property
    def model_path(self) -> str:
        """The path of the file."""
        return self.model.path

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts, in the order of their numbers; empty for a plain base."""
        return list(self.model.experts["names"])

    def describe(self) -> str:
        """The file, the base, the experts and the context, in three lines for people."""
        return facts(self)

    # ---- tokens ----

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: str, or its UTF-8 bytes.
            add_bos: put BOS first, if the model wants one.
            special: read the names of control tokens in the text as those tokens.
        """
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return self.model.tokenize(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids; control tokens are left out unless `special`."""
        return codecs.decode(self.detokenize_bytes(tokens, special), "utf-8", "replace")

    def detokenize_bytes(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The same as bytes, which may begin or end inside of a character."""
        return b"".join(self.model.piece(int(t), special) for t in tokens)

    def token_bos(self) -> int:
        """Id of the token that begins a text, -1 if there is none."""
        return self.model.bos

    def token_eos(self) -> int:
        """Id of the token that ends a text, -1 if there is none."""
        return self.model.eos

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
        """Stops what this context does in another thread, which raises Cancelled there.

        That is an evaluation, a prompt's included, or a generation that has begun, even between two of
        its tokens. What begins later is not affected.
        """
        self.session.cancel()

    @overload
    def save_state(self) -> bytes: ...
    @overload
    def save_state(self, path: str | os.PathLike[str]) -> None: ...
    def save_state(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """The context's tokens, keys, values and last logits, as bytes or to a file.

        The file appears complete or not at all, and replaces any before. It fits this model file,
        `delta_mode` and `kv_type` only.

        Raises:
            OSError: the file cannot be written.
            BusyError: another thread is evaluating.
        """
        if path is None:
            return self.session.save_bytes()
        save_state(self.session, path)
        return None

    def load_state(self, state: bytes | bytearray | memoryview | str | os.PathLike[str]) -> None:
        """Takes the context from what `save_state` returned or wrote: what follows is the same, bit for bit.

        On an error the context is as before.

        Raises:
            FormatError: it is damaged, or of another model, `delta_mode` or `kv_type`.
            ContextOverflow: it has more tokens than n_ctx.
            OSError: the file cannot be read.
            BusyError: another thread is evaluating.
        """
        load_state(self.session, state)

    # ---- generation ----

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
            logprobs, prompt_logprobs: see Generation.
            options: see GenerationOptions.

        Raises:
            TypeError: an option that is not known.
            ValueError: an option out of range.
            ContextOverflow: the prompt is longer than the context.
        """
        max_tokens, stop = options.pop("max_tokens", None), options.pop("stop", None)
        budget = options.pop("reasoning_budget", None)
        reasoning_format = options.pop("reasoning_format", None) or "auto"
        if reasoning_format not in ("auto", "deepseek", "none"):
            raise ValueError(
                f"reasoning_format is {reasoning_format!r}, expected auto, deepseek or none"
            )
        sampling = self.sampling.override(**sampling_options(options))
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
        around = think or self.think_tokens
        thoughts = ThoughtBudget(around or (-1, -1), -1 if budget is None else budget, tokens)
        return Generation(
            self.model,
            self.session,
            tokens,
            sampling.sampler(self.model, self.session.n_ctx),
            max_tokens=max_tokens,
            stop=stop_list(stop),
            think=around if reasoning_format == "none" else think,
            split_thoughts=reasoning_format != "none",
            thoughts=thoughts,
            reuse_prefix=reuse_prefix,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> str:
        """The text that continues a prompt. Options as in `start`."""
        return "".join(self.stream_generate(prompt, **options))

    def stream_generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """Yields the same text in pieces of whole characters. Leaving the loop stops the work."""
        return (piece for _, piece in self.start(prompt, **options))

    def generate_tokens(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Iterator[int]:
        """Yields the ids of the tokens that continue a prompt, the one that ends the text left out."""
        generation = self.start(prompt, **options)
        return (t for t in generation.sampled_tokens() if not self.model.is_end(t))

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
        logprobs: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """The generation of the next assistant message; evaluates only what is new since the last turn.

        Options as in `start`.
        """
        return self.start(
            self.chat_template.encode(messages),
            think=self.think_tokens,
            reuse_prefix=True,
            logprobs=logprobs,
            **options,
        )

    # ---- llama-cpp-python's ----

    if not TYPE_CHECKING:  # a type checker finds them without it

        def __getattr__(self, name: str) -> NoReturn:
            why = MISSING_ATTRIBUTES.get(name)
            hint = f": {why}" if why else ""
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{hint}")

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> NoReturn:
        """Not supported: nothing is downloaded. Raises NotImplementedError."""
        raise NotImplementedError(
            "from_pretrained is not supported, nothing is downloaded: fetch the file, for instance with "
            "huggingface_hub.hf_hub_download, and give its path to the constructor"
        )
