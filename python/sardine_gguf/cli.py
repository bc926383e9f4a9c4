"""sardine-cli: arguments and exit codes. Flags are llama.cpp's where it has them."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sardine_gguf.gpu_layers import add_gpu_flag
from sardine_gguf.program import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    log_to_stderr,
    run_program,
)

if TYPE_CHECKING:
    from sardine_gguf.model import Sardine


def _context_length(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-cli."""
    from sardine_gguf import __version__

    p = argparse.ArgumentParser(
        prog="sardine-cli",
        description="Chat with a SaRDinE model. With -p, or with text on standard input, it answers once.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    p.add_argument("-m", "--model", metavar="FILE", required=True, help="GGUF file to run")
    p.add_argument(
        "--adapter",
        metavar="FILE",
        help="file with the experts alone (convert-sardine --adapter), for a plain base given with -m",
    )
    p.add_argument("-p", "--prompt", metavar="TEXT", help="answer this and exit")
    p.add_argument("-f", "--file", metavar="FILE", help="answer this file's text and exit")
    p.add_argument("-sys", "--system-prompt", metavar="TEXT", help="system message of the chat")
    p.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without chat template"
    )
    p.add_argument(
        "-n",
        "--n-predict",
        type=int,
        default=-1,
        metavar="N",
        help="tokens per answer (-1: no limit)",
    )
    p.add_argument(
        "-c",
        "--ctx-size",
        type=_context_length,
        default=0,
        metavar="N",
        help="context (0: model's, at most 8192; auto: what the free memory holds)",
    )
    p.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="prompt batch (512)"
    )
    p.add_argument(
        "-t", "--threads", type=int, default=-1, metavar="N", help="CPU threads (-1: all)"
    )
    add_gpu_flag(p)
    p.add_argument(
        "-s", "--seed", type=int, default=-1, metavar="N", help="random seed (-1: new one)"
    )
    p.add_argument("--temp", type=float, metavar="T", help="temperature, 0 is greedy (0.8)")
    p.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest (40)")
    p.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest P (0.95)")
    p.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens below P of the best (0.05)"
    )
    p.add_argument("--hide-thinking", action="store_true", help="do not show the model's thoughts")
    p.add_argument(
        "--reasoning-budget",
        type=int,
        default=-1,
        metavar="N",
        help="tokens of thought at most, then the answer is forced (-1: no limit, 0: none)",
    )
    p.add_argument(
        "--reasoning-format",
        choices=("auto", "deepseek", "none"),
        default="auto",
        help="none: leave thoughts in the answer, as the model writes them (auto, deepseek: apart)",
    )
    p.add_argument(
        "--delta-mode",
        choices=("sparse", "gain", "off"),
        help="how the experts act: sparse, gain (as published code), off (base alone); default: the file's",
    )
    p.add_argument(
        "-ctk",
        "--cache-type",
        choices=("f16", "f32", "q8_0"),
        default="f16",
        help="type of cached keys and values (f16)",
    )
    p.add_argument(
        "--show-timings",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tokens per second after each answer, on standard error",
    )
    p.add_argument(
        "-v", "--verbose", action="store_true", help="say what was loaded, and what libllama says"
    )
    p.add_argument("--version", action="version", version=f"sardine-cli {__version__}")
    return p


def _single_prompt(args: argparse.Namespace) -> str | None:
    """The text to answer once, or None for a chat on the terminal."""
    if args.prompt is not None:
        return str(args.prompt)
    if args.file is not None:
        with open(args.file, encoding="utf-8", errors="replace") as f:  # noqa: PTH123 (also /dev/stdin)
            return f.read()
    return None if sys.stdin.isatty() else sys.stdin.read()


def _load(args: argparse.Namespace, verbose: bool) -> Sardine:
    """The model; its warnings become lines on standard error."""
    from sardine_gguf.model import Sardine
    from sardine_gguf.terminal import clean

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = Sardine(
            args.model,
            adapter=args.adapter,
            n_ctx=args.ctx_size or None,
            n_batch=args.batch_size,
            n_threads=None if args.threads == -1 else args.threads,
            n_gpu_layers=args.n_gpu_layers,
            delta_mode=args.delta_mode,
            kv_type=args.cache_type,
            seed=args.seed,
            verbose=verbose,
        )
    for warning in caught:
        print(f"sardine-cli: warning: {clean(str(warning.message))}", file=sys.stderr)
    return model


def run(args: argparse.Namespace) -> int:
    """Loads the model and answers; errors are the caller's."""
    from sardine_gguf.chat_loop import Chat, run_turn, stats_line
    from sardine_gguf.terminal import Printer

    if args.verbose:
        log_to_stderr()
    prompt = _single_prompt(args)
    if prompt is not None and not prompt.strip():
        print("sardine-cli: error: the prompt is empty", file=sys.stderr)
        return EXIT_USAGE
    options = {
        "max_tokens": None if args.n_predict < 0 else args.n_predict,
        "temperature": args.temp,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "reasoning_budget": args.reasoning_budget,
        "reasoning_format": args.reasoning_format,
    }
    with _load(args, verbose=args.verbose or prompt is None) as model:
        if prompt is None:
            chat = Chat(
                model,
                system=args.system_prompt,
                show_stats=args.show_timings,
                hide_thinking=args.hide_thinking,
                **options,
            )
            chat.run()
            return EXIT_OK
        # Beside an answer on a terminal thoughts are dim; where only the answer is wanted they are elsewhere.
        thoughts = sys.stdout if sys.stdout.isatty() else sys.stderr
        printer = Printer(sys.stdout, None if args.hide_thinking else thoughts)
        if args.raw:
            generation = model.start(prompt, **options)
        else:
            messages = [{"role": "user", "content": prompt.strip()}]
            if args.system_prompt:
                messages.insert(0, {"role": "system", "content": args.system_prompt})
            generation = model.start_chat(messages, **options)
        interrupted = run_turn(generation, printer).interrupted
        if args.show_timings:
            print(stats_line(generation), file=sys.stderr)
        return EXIT_INTERRUPTED if interrupted else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-cli; returns the exit code."""
    return run_program(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
