"""The model class of the public API."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sardine_gguf import _native
from sardine_gguf.arguments import flag
from sardine_gguf.context import ContextLength, ContextOptions, KvType, encoded_path
from sardine_gguf.evaluation import EvaluationMethods
from sardine_gguf.expert_settings import ExpertSettings, ExpertSpec
from sardine_gguf.facts import ModelFacts
from sardine_gguf.gpu_layers import GpuLayers, native_layers
from sardine_gguf.llama_arguments import MISSING_ATTRIBUTES, llama_arguments
from sardine_gguf.model_facts import facts
from sardine_gguf.openai_api import OpenAIMethods
from sardine_gguf.sampling import SamplingOptions

DeltaMode = Literal["sparse", "gain", "off"]


class Sardine(OpenAIMethods, EvaluationMethods, ModelFacts):
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
        n_gpu_layers: layers on the GPU, counted as llama.cpp does: the output, then layers from the last
            one backwards. "all" or -1; "auto" takes as many as its free memory holds. docs/gpu.md.
        repack: copy the weights on the CPU into layouts that are multiplied with faster by single tokens,
            as llama.cpp does by default (there for prompts too, which that slows down on most x86); takes
            seconds and the copies' memory. docs/performance.md says what it buys.
        delta_mode: "sparse" (experts change the FFN's matrices), "gain" (they scale its output, as the
            published code does), "off" (the base alone); None takes the file's.
        experts: settings of experts by name or number, as the property `experts` takes them: a weight
            forces, "mute" silences, "+2" is a bias. None lets the router choose.
        kv_type: type of cached keys and values: "f16", "f32", or "q8_0", which takes half of f16's
            memory and needs a head dimension that is a multiple of 32.
        seed: default seed of `generate` and the chat; negative draws a new one each time.
        verbose: print what was loaded to standard error.
        progress: called with 0.0 to 1.0 while the file is checked and copied to a GPU or repacked; what it
            raises ends the loading, as Ctrl-C does.
        llama: other arguments of llama-cpp-python's Llama. type_k and type_v (the same) are read as kv_type,
            last_n_tokens_size as sampling.repeat_last_n; others are taken where they ask for what is done
            anyway, and refused elsewhere.

    Raises:
        FormatError: a file is damaged, of another kind, not a model that this runtime computes, or the
            adapter was made for a base of another shape.
        OSError: the file cannot be read.
        ModelChanged: a file is written to while it is loaded.
        ForkError: a forked child makes a context of several threads, and its parent has evaluated with such
            a one: use multiprocessing's "spawn" or "forkserver".
        InsufficientMemory: the context does not fit the free memory; it names the bytes needed and free,
            and nothing was allocated.
        DeviceError: layers on a GPU are asked for and there is none to use, with what to install.
        TypeError, ValueError: an argument is of another type, or out of range.
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
        n_gpu_layers: GpuLayers = 0,
        repack: bool = False,
        delta_mode: DeltaMode | None = None,
        experts: ExpertSpec | None = None,
        kv_type: KvType = "f16",
        seed: int = -1,
        verbose: bool = False,
        progress: Callable[[float], object] | None = None,
        **llama: Any,
    ) -> None:
        self._session: _native.Session | None = None
        self._running = {}
        if (path is None) == (model_path is None):
            raise TypeError("give the file as the first argument or as model_path")
        path = model_path if path is None else path
        assert path is not None
        kv_type, sampling = llama_arguments(  # type: ignore[assignment]
            llama, n_batch=n_batch, n_threads=n_threads, kv_type=kv_type
        )
        options = ContextOptions(n_ctx, n_batch, n_threads, kv_type, delta_mode)
        flag("verbose", verbose)
        flag("repack", repack)
        SamplingOptions(seed=seed).override(**sampling)  # raises now rather than after the loading
        try:
            self._model = _native.Model(
                encoded_path(path),
                n_threads=options.n_threads or 0,
                adapter=None if adapter is None else encoded_path(adapter, "adapter"),
                n_gpu_layers=native_layers(n_gpu_layers),
                repack=repack,
                n_ctx=options.n_ctx if isinstance(options.n_ctx, int) else 0,
                n_batch=options.n_batch,
                kv_type=options.kv_type,
                progress=progress,
            )
        except OSError as e:
            e.filename = e.filename or os.fspath(path)
            raise
        if not self._model.adapter_fits_norms():
            warnings.warn(
                f"{os.fspath(adapter or '')}: the base has the right shape, but its norms are not those of "
                f"the model that the experts were made for: is {os.fspath(path)} another finetune?",
                stacklevel=2,
            )
        self._context = options.on(self._model)
        self._session = self._context.open(self._model)
        self.experts = experts
        self.sampling = SamplingOptions.from_file(self._model.file, seed).override(**sampling)
        if verbose:
            print(self.describe(), file=sys.stderr)

    def new_context(
        self,
        *,
        n_ctx: ContextLength = None,
        n_batch: int | None = None,
        n_threads: int | None = None,
        delta_mode: DeltaMode | None = None,
        experts: ExpertSpec | None = None,
        kv_type: KvType | None = None,
    ) -> Sardine:
        """Another context on the same weights: keys, values and scratch are its own.

        It has every method of this class, and both may evaluate at the same time in different threads.
        Either may be closed first. Arguments as in the constructor; None takes this context's, but for
        `experts` in mode "off", which has none; {} lets the router choose.

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
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._forget_cached()
        other._context, other._session, other._running = options, session, {}
        other._experts, other._keeps_router_logits = ExpertSettings(), False
        if experts is not None or options.delta_mode != "off":
            other.experts = self.experts if experts is None else experts
        return other

    def describe(self) -> str:
        """The file, the base, the experts and the context, in three lines for people."""
        return facts(self)

    # ---- llama-cpp-python's ----

    if not TYPE_CHECKING:  # a type checker finds them without it

        def __getattr__(self, name: str) -> NoReturn:
            why = MISSING_ATTRIBUTES.get(name)
            hint = f": {why}" if why else ""
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{hint}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in MISSING_ATTRIBUTES:  # it would change nothing
            raise AttributeError(f"{name} cannot be set: {MISSING_ATTRIBUTES[name]}")
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> NoReturn:
        """Not supported: nothing is downloaded. Raises NotImplementedError."""
        raise NotImplementedError(
            "from_pretrained is not supported, nothing is downloaded: fetch the file, for instance with "
            "huggingface_hub.hf_hub_download, and give its path to the constructor"
        )
