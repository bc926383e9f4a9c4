"""Which experts act in a context: what a caller asks for, by name or number."""

from __future__ import annotations

import ctypes
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sardine_gguf import _native
from sardine_gguf.arguments import wrong_type
from sardine_gguf.terminal import clean

ExpertValue = float | str | None
ExpertSpec = Mapping[str, ExpertValue] | Mapping[int, ExpertValue] | str

MAX_BIAS = 100.0  # clamped router logits differ by at most that
# Weights whose sum is this near to 1 are left alone, so that settings read back are the same ones. Where all
# are float32, as a native context holds them, each was rounded by up to 2^-24 of itself.
_ROUNDING, _ROUNDING_F32 = 1e-12, 6e-8


@dataclass(frozen=True)
class ExpertSettings:
    """How a context's choice of experts is steered; without values the router chooses freely.

    Attributes:
        weights: [n_experts] that sum to 1, or (): these experts act with these weights in every token and
            layer, whatever the router says; experts of weight 0 do not act.
        bias: [n_experts], or (): added to the router's clamped logits before the top k are taken;
            -inf is never chosen.
    """

    weights: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()

    @classmethod
    def parse(cls, spec: ExpertSpec | None, names: Sequence[str]) -> ExpertSettings:
        """Settings from a mapping of experts to values, or from its text, "math=1, code=mute, logic=+2".

        Args:
            spec: keys are names or numbers, or "*" for all that are not named. A value is a weight above 0,
                which forces; 0, None or "mute"; or a bias, a text with its sign: "+2", "-0.5".
                None, or nothing, leaves the choice to the router.
            names: the model's experts.

        Raises:
            ValueError: an expert that is not there or stands twice, a value out of range, a bias beside a
                forced expert.
            TypeError: a key or value of another type.
        """
        if not (spec is None or isinstance(spec, str | Mapping)):
            raise wrong_type("experts", spec, "a mapping of experts to values, or its text")
        given: dict[Any, object] = {}
        given.update(parse_text(spec) if isinstance(spec, str) else spec or {})
        values = _by_number(given, names)
        forced = {e: v for e, v in values.items() if isinstance(v, float) and v > 0}
        if forced:
            biased = next((e for e, v in values.items() if isinstance(v, str)), None)
            if biased is not None:
                raise ValueError(
                    f"expert {_shown(names[biased])} has a bias while others are forced, where the router is "
                    "not asked: give it a weight, or force none"
                )
            total = math.fsum(forced.values())
            held = all(ctypes.c_float(w).value == w for w in forced.values())
            near = _ROUNDING_F32 if held else _ROUNDING
            scale = 1.0 if abs(total - 1.0) <= near else total
            return cls(weights=tuple(forced.get(e, 0.0) / scale for e in range(len(names))))
        bias = tuple(_bias(values.get(e, "+0")) for e in range(len(names)))
        return cls(bias=bias) if any(bias) else cls()

    @classmethod
    def of(cls, session: _native.Session) -> ExpertSettings:
        """Those that a native context has now."""
        weights, bias = session.steering
        return cls(tuple(weights), tuple(bias))

    def apply(self, session: _native.Session, claim: int | None = None) -> None:
        """Steers a native context; a change empties it.

        Raises:
            ValueError: there are settings, and the context's mode is "off".
            InsufficientMemory: no room for as many experts; the context is as before.
            ContextChanged: it was claimed again since `claim`.
        """
        session.steer(weights=self.weights, bias=self.bias, claim=claim)

    def as_dict(self, names: Sequence[str]) -> dict[str, float | str]:
        """The settings that differ from the router's free choice, as `parse` takes them."""
        if self.weights:
            return {names[e]: w for e, w in enumerate(self.weights) if w > 0}
        return {
            names[e]: "mute" if b == -math.inf else f"{b:+.9g}"
            for e, b in enumerate(self.bias)
            if b != 0
        }

    def text(self, names: Sequence[str]) -> str:
        """One line for people, "math=0.75 logic=0.25"; "" if the router chooses freely."""
        parts = (
            f"{name}={v if isinstance(v, str) else format(v, '.3g')}"
            for name, v in self.as_dict(names).items()
        )
        return clean(" ".join(parts))

    def __bool__(self) -> bool:
        return bool(self.weights or self.bias)


def parse_text(text: str) -> dict[str, str]:
    """ "math=1, code=mute logic=+2" as a mapping; parts are separated by commas or spaces.

    Raises:
        ValueError: a part without "=", or an expert that stands twice.
    """
    found: dict[str, str] = {}
    for part in text.replace(",", " ").split():
        name, equals, value = part.rpartition("=")
        if not equals or not name or not value:
            raise ValueError(
                f"{_shown(part)} is no setting of an expert: expected NAME=WEIGHT, NAME=mute or NAME=+BIAS"
            )
        if name in found:
            raise ValueError(f"expert {_shown(name)} is set twice")
        found[name] = value
    return found


def expert_number(key: object, names: Sequence[str]) -> int:
    """The number of an expert given by name, number, or the number's digits.

    Raises:
        ValueError: there is none; names those that there are, and the closest.
        TypeError: the key is neither text nor a number.
    """
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"an expert is named by a str or an int, not {type(key).__name__}")
    if not names:
        raise ValueError("experts are set, but this is a plain base model, which has none")
    if isinstance(key, str) and key in names:
        return names.index(key)
    digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
    number = int(key) if digits or isinstance(key, int) else -1
    if 0 <= number < len(names):
        return number
    if digits or isinstance(key, int):
        raise ValueError(
            f"there is no expert {_shown(key)}: they are numbered 0 to {len(names) - 1}"
        )
    near = difflib.get_close_matches(str(key)[:64].lower(), names, n=1)
    hint = f"did you mean {_shown(near[0])}? " if near else ""
    known = ", ".join(clean(n) for n in names[:32]) + (", ..." if len(names) > 32 else "")
    raise ValueError(f"there is no expert {_shown(key)}: {hint}The experts are {known}")


def _shown(value: object) -> str:
    text = clean(str(value))
    return f"'{text[:64]}...'" if len(text) > 64 else f"'{text}'"


def _by_number(given: Mapping[Any, object], names: Sequence[str]) -> dict[int, float | str]:
    """Weights as floats above 0 and 0 for mute, biases as text; "*" filled in."""
    values: dict[int, float | str] = {}
    rest: float | str | None = None
    for key, value in given.items():
        checked = _value(key, value)
        if key == "*" and "*" not in names:
            rest = checked
            continue
        number = expert_number(key, names)
        if number in values:
            raise ValueError(f"expert {_shown(names[number])} is set twice")
        values[number] = checked
    if rest is None:
        return values
    expert_number(0, names)  # refuses a plain base
    return {e: values.get(e, rest) for e in range(len(names))}


def _value(key: object, value: object) -> float | str:
    """A weight, 0.0 for mute, or the text of a bias."""
    if value is None or value == "mute":
        return 0.0
    expected = (
        "expected a weight above 0, 'mute' (or 0, or None), or a bias with its sign, '+2' or '-2'"
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"expert {_shown(key)} is set to {type(value).__name__}, {expected}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"expert {_shown(key)} is set to {_shown(value)}, {expected}") from None
    if isinstance(value, str) and value.strip()[:1] in ("+", "-"):
        if not abs(number) <= MAX_BIAS:
            raise ValueError(
                f"expert {_shown(key)} has the bias {_shown(value)}, expected -100 to 100: the router's "
                "logits differ by no more"
            )
        return value
    if not 0 <= number <= 1e30:
        raise ValueError(f"expert {_shown(key)} is set to {value}, {expected}")
    return number


def _bias(value: float | str) -> float:
    return float(value) if isinstance(value, str) else -math.inf
