"""Sampling options: one set of defaults, the file's own where it has them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sardine_gguf._native import GgufFile, Model, Sampler
from sardine_gguf.arguments import integer, logit_bias, number, text
from sardine_gguf.errors import FormatError
from sardine_gguf.sampler_order import DEFAULT_ORDER, sampler_order

# llama.cpp reads 2**32 - 1 as "take a new one".
_ANY_SEED = 2**32 - 1

# Key under general.sampling, field.
_FILE_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat_mode",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
_INTEGERS = ("top_k", "repeat_last_n", "mirostat_mode")
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "mirostat_tau", "mirostat_eta",
)  # fmt: skip


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn. Names, defaults and the order of their application are llama.cpp's.

    logit_bias and grammar come first, then what `samplers` names. With temperature 0 only the penalties count
    of these; with mirostat_mode 1 or 2, mirostat follows the penalties and the temperature.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 or less turns it off.
        top_p: keep the smallest set of this probability; 1 turns it off.
        min_p: drop tokens below this share of the likeliest one's probability; 0 turns it off.
        typical_p: keep the tokens nearest to the expected surprise, of this probability; 1 turns it off.
        xtc_probability, xtc_threshold: with this probability, drop all but the last of the tokens above the
            threshold; 0 turns it off.
        repeat_penalty: divides the logits above 0 of tokens seen (multiplies those below); 1 turns it off.
        presence_penalty: taken from the logits of tokens seen.
        frequency_penalty: taken from them as often as the token was seen.
        repeat_last_n: tokens that count as seen, those of the prompt among them; -1 is the whole context.
        mirostat_mode, mirostat_tau, mirostat_eta: 0 is off; target surprise in bits, learning rate.
        logit_bias: added to the logits of these token ids; -inf never takes them.
        grammar: GBNF text with a rule "root" that the answer follows.
        samplers: "penalties", "top_k", "typ_p", "top_p", "min_p", "xtc" and "temperature" in the order
            of their application, as a list or with ; between them. The options of one left out do nothing.
        seed: of the random draw; negative, or 2**32 - 1, takes a new one each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] | None = None
    grammar: str | None = None
    samplers: str | Sequence[str] = DEFAULT_ORDER
    seed: int = -1

    def __post_init__(self) -> None:
        """Raises TypeError and ValueError for what is no option's value; `sampler` knows the ranges."""
        for name in _INTEGERS:
            integer(name, getattr(self, name), least=-(2**31), most=2**31 - 1)
        for name in _NUMBERS:
            number(name, getattr(self, name))
        integer("seed", self.seed, most=_ANY_SEED)
        if self.logit_bias is not None:
            logit_bias(self.logit_bias)
        if self.grammar is not None:
            text("grammar", self.grammar)
        sampler_order(self.samplers)

    @staticmethod
    def from_file(file: GgufFile, seed: int = -1) -> SamplingOptions:
        """The `general.sampling.*` keys of a file over the defaults.

        Raises:
            FormatError: one of them is out of the option's range.
        """
        found: dict[str, Any] = {}
        for key, name in _FILE_KEYS.items():
            field = f"general.sampling.{key}"
            value = file.get(field)
            if value is None:
                continue
            try:
                found[name] = file_value(key, value)
            except ValueError as e:
                raise FormatError(
                    f"{file.path}: key '{field}' is {value}: {e}", file=file.path, field=field
                ) from None
        return SamplingOptions(seed=seed, samplers=_order_of(file), **found)

    def override(self, **changes: Any) -> SamplingOptions:
        """A copy in which every argument that is not None replaces the field of its name."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def sampler(self, model: Model | int, n_ctx: int) -> Sampler:
        """A sampler with its state at the start.

        Args:
            model: whose tokens are drawn, or the size of a vocabulary.
            n_ctx: what repeat_last_n -1 stands for.

        Raises:
            ValueError: an option is out of its range, or the grammar does not parse (with the line).
        """
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        any_seed = self.seed < 0 or self.seed == _ANY_SEED
        options["seed"] = secrets.randbelow(_ANY_SEED) if any_seed else self.seed
        if self.repeat_last_n == -1:
            options["repeat_last_n"] = n_ctx
        options["logit_bias"] = list(logit_bias(self.logit_bias or {}).items())
        options["grammar"] = self.grammar or ""
        options["samplers"] = list(sampler_order(self.samplers))
        return Sampler(model, **options)


def file_value(key: str, value: object) -> float:
    """A value of a `general.sampling.*` key (its last part is given) as the option's value.

    Raises:
        ValueError: it is no number, or out of the option's range.
    """
    name = _FILE_KEYS[key]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("expected a number")
    if not math.isfinite(value) or abs(value) >= 2**31:
        raise ValueError("which no sampler takes")
    number = int(value) if name in _INTEGERS else float(value)
    SamplingOptions().override(**{name: number}).sampler(2, 64)
    return number


def _order_of(file: GgufFile) -> tuple[str, ...]:
    field = "general.sampling.sequence"
    value = file.get(field)
    if value is None:
        return DEFAULT_ORDER
    try:
        if not isinstance(value, str):
            raise ValueError(f"is {value!r:.40}, expected the samplers' names")
        return sampler_order(value)
    except ValueError as e:
        raise FormatError(f"{file.path}: key '{field}': {e}", file=file.path, field=field) from None


SAMPLING_NAMES = frozenset(f.name for f in fields(SamplingOptions))
