"""Facts about a model and its context."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sardine_gguf.open_model import OpenModel


def _printable(value: Any) -> Any:
    """Bytes of a text that were not UTF-8, held as surrogates, as replacement characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [_printable(v) for v in value] if isinstance(value, list) else value


class Count(int):
    """A number of something, which code written for llama-cpp-python may also call: n_ctx, n_ctx()."""

    def __call__(self) -> int:
        return int(self)


class ModelFacts(OpenModel):
    """What is in the file, and what runs."""

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

    @property
    def n_gpu_layers(self) -> int:
        """Layers on the GPU; the output counts as one."""
        return self.model.n_gpu_layers
