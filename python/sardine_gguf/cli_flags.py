"""The flags of sardine-cli. Names are llama.cpp's where it has them."""

from __future__ import annotations

import argparse
from typing import Literal, NoReturn

from sardine_gguf.expert_flags import add_flags as add_expert_flags
from sardine_gguf.flag_parser import Parser
from sardine_gguf.gpu_layers import add_gpu_flag
from sardine_gguf.program import EXIT_CODES
from sardine_gguf.repack_flag import add_repack_flag
from sardine_gguf.sampler_order import DEFAULT_ORDER, sampler_order


def _context_length(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens, nor auto") from None


def _no_download(repo: str) -> NoReturn:
    raise argparse.ArgumentTypeError(
        f"nothing is downloaded here: get the file with `hf download {repo}`, then name it with -m"
    )


def _samplers(text: str) -> tuple[str, ...]:
    try:
        return sampler_order(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and would end every answer")
    return text


def logit_bias(text: str) -> tuple[int, float]:
    """Token id and bias of llama.cpp's TOKEN_ID(+/-)BIAS. Raises ValueError."""
    at = max(text.find("+", 1), text.find("-", 1))
    if at < 0:
        raise ValueError(f"{text!r} is no TOKEN_ID+BIAS or TOKEN_ID-BIAS")
    return int(text[:at]), float(text[at:])


def build_parser() -> Parser:
    """The command line of sardine-cli."""
    p = Parser(
        prog="sardine-cli",
        usage="sardine-cli -m FILE [-p TEXT] [options]    (--help lists them)",
        description="Chat with a SaRDinE model. With -p, or with text on standard input, it answers once.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    _model(p.add_argument_group("model"))
    _prompt(p.add_argument_group("what to answer"))
    _sampling(p.add_argument_group("sampling"))
    _thoughts(p.add_argument_group("thoughts"))
    _looks(p.add_argument_group("the chat"))
    add_expert_flags(p)
    _information(p.add_argument_group("information"))
    return p


Group = argparse._ArgumentGroup


def _model(g: Group) -> None:
    from sardine_gguf.cache_type_flags import add_cache_type_flags

    g.add_argument("-m", "--model", metavar="FILE", help="GGUF file to run")
    g.add_argument("-hf", "--hf-repo", type=_no_download, metavar="REPO", help=argparse.SUPPRESS)
    g.add_argument(
        "--example", action="store_true", help="the bundled example, greedy unless --temp"
    )
    g.add_argument(
        "--adapter",
        metavar="FILE",
        help="file with the experts alone (convert-sardine --adapter), for a plain base given with -m",
    )
    g.add_argument(
        "--delta-mode",
        choices=("sparse", "gain", "off"),
        help="how the experts act: sparse, gain (as published code), off (base alone); default: the file's",
    )
    g.add_argument(
        "--no-experts",
        dest="delta_mode",
        action="store_const",
        const="off",
        help="--delta-mode off",
    )
    g.add_argument(
        "-c",
        "--ctx-size",
        type=_context_length,
        default=0,
        metavar="N",
        help="context (0: model's, at most 8192; auto: what the free memory holds)",
    )
    g.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="prompt batch (512)"
    )
    g.add_argument(
        "-ub", "--ubatch-size", type=int, metavar="N", help="the same: one number for both"
    )
    g.add_argument(
        "-t", "--threads", type=int, default=-1, metavar="N", help="CPU threads (-1: all)"
    )
    g.add_argument(
        "-tb", "--threads-batch", type=int, metavar="N", help="the same: one number for both"
    )
    add_cache_type_flags(g)
    add_gpu_flag(g)
    add_repack_flag(g)
    g.add_argument("--chat-template-file", metavar="FILE", help="Jinja template (model's)")


def _prompt(g: Group) -> None:
    g.add_argument("-p", "--prompt", metavar="TEXT", help="answer this and exit")
    g.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="answer this file's text (-: standard input) and exit; follows -p",
    )
    g.add_argument("-sys", "--system-prompt", metavar="TEXT", help="system message of the chat")
    g.add_argument("-sysf", "--system-prompt-file", metavar="FILE", help="the same from a file")
    g.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without chat template"
    )
    g.add_argument("-st", "--single-turn", action="store_true", help="leave after one answer")
    g.add_argument(
        "-cnv",
        "--conversation",
        action="store_true",
        help="chat also when standard input is no terminal: a message each line",
    )
    g.add_argument(
        "-o", "--output", "--output-file", metavar="FILE", help="write what was said there, too"
    )


def _sampling(g: Group) -> None:
    g.add_argument(
        "-n",
        "--predict",
        "--n-predict",
        dest="n_predict",
        type=int,
        default=-1,
        metavar="N",
        help="tokens per answer (-1: no limit)",
    )
    g.add_argument(
        "-s", "--seed", type=int, default=-1, metavar="N", help="random seed (-1: new one)"
    )
    numbers = (
        (("--temp", "--temperature"), "temperature", float, "temperature, 0 is greedy (0.8)"),
        (("--top-k",), "top_k", int, "sample from the K likeliest (40)"),
        (("--top-p",), "top_p", float, "sample from the likeliest of this probability (0.95)"),
        (("--min-p",), "min_p", float, "drop tokens below this share of the best (0.05)"),
        (("--typical", "--typical-p"), "typical_p", float, "locally typical sampling (1: off)"),
        (("--xtc-probability",), "xtc_probability", float, "chance of dropping top tokens (0)"),
        (("--xtc-threshold",), "xtc_threshold", float, "tokens above this may be dropped (0.1)"),
        (("--repeat-last-n",), "repeat_last_n", int, "tokens that count as seen (64; -1: all)"),
        (("--repeat-penalty",), "repeat_penalty", float, "on tokens seen (1: off)"),
        (("--presence-penalty",), "presence_penalty", float, "on tokens seen (0)"),
        (("--frequency-penalty",), "frequency_penalty", float, "as often as they were (0)"),
        (("--mirostat",), "mirostat_mode", int, "0, 1 or 2 (0: off)"),
        (("--mirostat-lr",), "mirostat_eta", float, "mirostat's learning rate (0.1)"),
        (("--mirostat-ent",), "mirostat_tau", float, "mirostat's target entropy (5)"),
    )
    for names, dest, kind, text in numbers:
        g.add_argument(*names, dest=dest, type=kind, metavar="N", help=text)
    g.add_argument(
        "--samplers",
        type=_samplers,
        metavar="NAMES",
        help=f"which are applied, in this order ({';'.join(DEFAULT_ORDER)})",
    )
    g.add_argument(
        "-r",
        "--reverse-prompt",
        action="append",
        type=_not_empty,
        dest="stop",
        metavar="TEXT",
        help="text that ends an answer and is not part of it; can be repeated",
    )
    g.add_argument(
        "-l",
        "--logit-bias",
        type=logit_bias,
        action="append",
        metavar="ID(+/-)BIAS",
        help="change a token's logit, e.g. 15043+1 or 15043-inf; can be repeated",
    )
    one = g.add_mutually_exclusive_group()
    one.add_argument("--grammar", metavar="GBNF", help="grammar that the answer follows")
    one.add_argument("--grammar-file", metavar="FILE", help="the same from a file")
    one.add_argument(
        "-j", "--json-schema", metavar="JSON", help="schema of the answer ({}: any object)"
    )
    one.add_argument("-jf", "--json-schema-file", metavar="FILE", help="the same from a file")


def _thoughts(g: Group) -> None:
    g.add_argument("--hide-thinking", action="store_true", help="do not show the model's thoughts")
    g.add_argument(
        "-rea",
        "--reasoning",
        choices=("on", "off", "auto"),
        default="auto",
        help="off: no thoughts; on: an error if the model has none; auto, on: a system message keeps the "
        "template's instructions to think",
    )
    g.add_argument(
        "--think-prompt",
        action=argparse.BooleanOptionalAction,
        help="put the template's instructions to think after a system message (where there are any)",
    )
    g.add_argument(
        "--reasoning-budget",
        type=int,
        default=-1,
        metavar="N",
        help="tokens of thought at most, then the answer is forced (-1: no limit, 0: none)",
    )
    g.add_argument(
        "--reasoning-format",
        choices=("auto", "deepseek", "none"),
        default="auto",
        help="none: leave thoughts in the answer, as the model writes them (auto, deepseek: apart)",
    )


def _looks(g: Group) -> None:
    g.add_argument(
        "--session", metavar="FILE", help="go on with this file, and save each turn to it"
    )
    g.add_argument("--no-history", action="store_true", help="do not keep what is typed in a file")
    g.add_argument(
        "-mli",
        "--multiline-input",
        action="store_true",
        help="Enter begins a line, Alt-Enter sends",
    )
    g.add_argument(
        "--markdown",
        action=argparse.BooleanOptionalAction,
        help="render answers as Markdown on a terminal",
    )
    g.add_argument(
        "-co",
        "--color",
        nargs="?",
        choices=("on", "off", "auto"),
        const="on",
        default="auto",
        help="colours (auto: on a terminal, unless NO_COLOR is set)",
    )
    g.add_argument("--simple-io", action="store_true", help="no line editing: for limited consoles")
    g.add_argument(
        "--show-timings",
        action=argparse.BooleanOptionalAction,
        help="counts and rates after each answer, on standard error",
    )


def _information(g: Group) -> None:
    from sardine_gguf import __version__

    g.add_argument(
        "-v",
        "--verbose",
        "--log-verbose",
        action="store_true",
        help="say what was loaded, and all that libllama says",
    )
    g.add_argument(
        "-lv",
        "--verbosity",
        "--log-verbosity",
        type=int,
        choices=range(6),
        metavar="N",
        help="libllama's words: 0 none, 1 errors, 2 warnings, 3 information, 4 and 5 all (1; 3 in a file)",
    )
    g.add_argument("--log-file", metavar="FILE", help="write them there, not to standard error")
    g.add_argument("--list-devices", action="store_true", help="say where models run, and exit")
    g.add_argument(
        "--completion-bash", action="store_true", help="a completion script for bash: source it"
    )
    g.add_argument("--version", action="version", version=f"sardine-cli {__version__}")
