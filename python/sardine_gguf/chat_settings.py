"""What /set changes: generation options, named as in Python or as llama.cpp's flags, and the chat's looks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sardine_gguf.sampling import SAMPLING_NAMES, SamplingOptions
from sardine_gguf.thoughts import ThoughtBudget


@dataclass
class Looks:
    """What is shown beside the answer, and how.

    Attributes:
        thinking: show thoughts.
        markdown: render answers as Markdown on a terminal.
        timings: a line of counts and rates after each answer.
    """

    thinking: bool = True
    markdown: bool = False
    timings: bool = True


def _switch(text: str) -> bool:
    if text.lower() in ("on", "yes", "true", "1", "show"):
        return True
    if text.lower() in ("off", "no", "false", "0", "hide"):
        return False
    raise ValueError("expected on or off")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _tokens(text: str) -> int | None:
    n = _whole(text)
    if n < -1:
        raise ValueError("expected a number of tokens, or -1 for no limit")
    return None if n == -1 else n


def _budget(text: str) -> int:
    n = _whole(text)
    ThoughtBudget((-1, -1), n, ())
    return n


@dataclass(frozen=True)
class Setting:
    """Something that /set changes.

    Attributes:
        name: a key of GenerationOptions, or an attribute of the chat's looks.
        parse: the value of a text; raises ValueError.
        flags: other names, as llama.cpp's flags have them.
    """

    name: str
    parse: Callable[[str], Any]
    what: str
    flags: tuple[str, ...] = ()


_FLOAT, _INT = _number, _whole
SETTINGS = (
    Setting("temperature", _FLOAT, "0 takes the likeliest token", ("temp",)),
    Setting("top_k", _INT, "sample from the k likeliest; 0 turns it off"),
    Setting("top_p", _FLOAT, "sample from the likeliest of this probability"),
    Setting("min_p", _FLOAT, "drop tokens below this share of the likeliest"),
    Setting("typical_p", _FLOAT, "locally typical sampling; 1 turns it off", ("typical",)),
    Setting("xtc_probability", _FLOAT, "how often xtc drops the most expected tokens"),
    Setting("xtc_threshold", _FLOAT, "tokens that xtc may drop are above it"),
    Setting("repeat_penalty", _FLOAT, "divides the logits of tokens seen; 1 turns it off"),
    Setting("repeat_last_n", _INT, "tokens that count as seen; -1 is all"),
    Setting("presence_penalty", _FLOAT, "taken from the logits of tokens seen"),
    Setting("frequency_penalty", _FLOAT, "taken as often as a token was seen"),
    Setting("mirostat_mode", _INT, "0, 1 or 2", ("mirostat",)),
    Setting("mirostat_eta", _FLOAT, "mirostat's learning rate", ("mirostat_lr",)),
    Setting("mirostat_tau", _FLOAT, "mirostat's target, in bits", ("mirostat_ent",)),
    Setting("seed", _INT, "of the random draw; -1 takes a new one each time"),
    Setting("max_tokens", _tokens, "tokens per answer; -1 sets no limit", ("n_predict", "predict")),
    Setting("reasoning_budget", _budget, "tokens of thought; -1 sets no limit, 0 allows none"),
    Setting("thinking", _switch, "show thoughts"),
    Setting("markdown", _switch, "render answers as Markdown"),
    Setting("timings", _switch, "the line of counts and rates after an answer", ("show_timings",)),
)
LOOKS = tuple(f.name for f in fields(Looks))
_BY_NAME = {name: s for s in SETTINGS for name in (s.name, *s.flags)}


def setting(name: str) -> Setting:
    """The setting of a name; `-` and `_` are the same, and leading dashes do not count.

    Raises:
        ValueError: there is none.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    if plain not in _BY_NAME:
        near = difflib.get_close_matches(plain, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "/set lists them"
        raise ValueError(f"there is no setting {name}: {hint}")
    return _BY_NAME[plain]


def parsed(found: Setting, text: str) -> Any:
    """The value of a text.

    Raises:
        ValueError: it is none, or out of the option's range.
    """
    try:
        value = found.parse(text)
        if found.name in SAMPLING_NAMES:
            SamplingOptions(**{found.name: value}).sampler(2, 64)
    except (ValueError, OverflowError, TypeError) as e:
        raise ValueError(f"{found.name} cannot be {text}: {e}") from None
    return value


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a saved conversation that are generation options, in range.

    Raises:
        ValueError: one is not known or out of range.
    """
    out = {}
    for name, value in settings.items():
        found = setting(name)
        if found.name in LOOKS or isinstance(value, list | dict):
            raise ValueError(f"{name} is no generation option with one value")
        out[found.name] = None if value is None else parsed(found, str(value))
    return out
