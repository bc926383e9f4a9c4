"""Flags from the environment, under llama.cpp's names. The command line wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Those of llama.cpp's variables whose flags sardine-cli has.
FLAGS = {
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_N_PREDICT": "--n-predict",
    "LLAMA_ARG_THREADS": "--threads",
    "LLAMA_ARG_BATCH": "--batch-size",
    "LLAMA_ARG_CACHE_TYPE_K": "--cache-type-k",
    "LLAMA_ARG_CACHE_TYPE_V": "--cache-type-v",
    "LLAMA_ARG_N_GPU_LAYERS": "--n-gpu-layers",
    "LLAMA_ARG_TEMPERATURE": "--temp",
    "LLAMA_ARG_TOP_K": "--top-k",
    "LLAMA_ARG_TOP_P": "--top-p",
    "LLAMA_ARG_MIN_P": "--min-p",
    "LLAMA_ARG_REPEAT_PENALTY": "--repeat-penalty",
    "LLAMA_ARG_PRESENCE_PENALTY": "--presence-penalty",
    "LLAMA_ARG_FREQUENCY_PENALTY": "--frequency-penalty",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE": "--chat-template-file",
    "LLAMA_ARG_THINK": "--reasoning-format",
    "LLAMA_ARG_THINK_BUDGET": "--reasoning-budget",
    "LLAMA_ARG_REASONING": "--reasoning",
    "LLAMA_ARG_LOG_FILE": "--log-file",
    "LLAMA_ARG_LOG_VERBOSITY": "--log-verbosity",
}
SWITCHES = {"LLAMA_ARG_SHOW_TIMINGS": ("--show-timings", "--no-show-timings")}
_ON, _OFF = ("1", "on", "true", "yes", "enabled"), ("0", "off", "false", "no", "disabled")


def with_environment(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments with those of the environment before them.

    Raises:
        ValueError: a switch is neither on nor off.
    """
    before = []
    for name, flag in FLAGS.items():
        # --example takes the place of a model.
        if environment.get(name) and not (flag == "--model" and "--example" in argv):
            before.append(f"{flag}={environment[name]}")
    for name, (on, off) in SWITCHES.items():
        value = environment.get(name, "").lower()
        if value and value not in (*_ON, *_OFF):
            raise ValueError(f"the environment's {name} is {value}, expected on or off")
        if value:
            before.append(on if value in _ON else off)
    return [*before, *argv]
