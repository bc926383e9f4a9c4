"""sardine-routing: which experts the router chooses for a text, as a page, a picture, text or JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError
from sardine_gguf.expert_flags import experts_text
from sardine_gguf.first_minute import load_model
from sardine_gguf.flag_parser import Parser
from sardine_gguf.model import Sardine
from sardine_gguf.output_file import check_output, replaced_file
from sardine_gguf.program import EXIT_CODES, EXIT_OK, run_program
from sardine_gguf.routes import agreement, joined
from sardine_gguf.routing_figures import (
    agreement_figures,
    agreement_lines,
    by_group,
    figures,
    share_lines,
)
from sardine_gguf.routing_page import check_size
from sardine_gguf.routing_prompts import (
    Prompt,
    RoutedPrompt,
    check_texts,
    distinct,
    encode,
    file_prompt,
    read_prompts,
    route,
    text_prompt,
)
from sardine_gguf.terminal import clean_line
from sardine_gguf.units import count_text


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-routing; flags are llama.cpp's where it has them."""
    from sardine_gguf import __version__

    p = Parser(
        prog="sardine-routing",
        description="Show which experts the router chooses for texts, or how far two files agree.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    p.add_argument("-m", "--model", metavar="FILE", required=True, help="GGUF file to examine")
    p.add_argument("--adapter", metavar="FILE", help="the experts, for a model that is their base")
    p.add_argument(
        "-f", "--file", metavar="FILE", action="append", dest="texts",
        type=lambda path: (file_prompt, path), help="UTF-8 text (-: standard input); can be repeated",
    )  # fmt: skip
    p.add_argument(
        "-p", "--prompt", metavar="TEXT", action="append", dest="texts",
        type=lambda text: (text_prompt, text), help="a text; can be repeated",
    )  # fmt: skip
    p.add_argument(
        "--prompts", metavar="FILE", help='texts by group, as JSON: {"math": ["...", ...], ...}'
    )
    p.add_argument(
        "--chat", action="store_true", help="texts are user messages in the model's chat template"
    )
    p.add_argument(
        "-o", "--output", metavar="OUT.html", help="write a page that opens in a browser"
    )
    p.add_argument("--png", metavar="OUT.png", help="draw a picture (needs matplotlib)")
    p.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    p.add_argument(
        "--compare", metavar="FILE", help="how far this file's routing agrees with that of -m"
    )
    p.add_argument("--compare-adapter", metavar="FILE", help="the experts for --compare's file")
    p.add_argument(
        "--experts",
        type=experts_text,
        metavar="SET",
        help='steer them: "math=1" forces, "code=mute" mutes, "logic=+2" adds a bias',
    )
    p.add_argument(
        "--delta-mode", choices=("sparse", "gain"), help="how the experts act; default: the file's"
    )
    p.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="context (default: what the texts need)"
    )
    p.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="tokens at a time"
    )
    p.add_argument(
        "-t", "--threads", type=int, default=-1, metavar="N", help="CPU threads (-1: all)"
    )
    p.add_argument("--version", action="version", version=f"sardine-routing {__version__}")
    return p


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not fit, FormatError or OSError for outputs that cannot be."""
    if not args.texts and args.prompts is None:
        raise ValueError("there is no text: give one with -f FILE, -p TEXT or --prompts FILE")
    if args.compare_adapter is not None and args.compare is None:
        raise ValueError("--compare-adapter needs --compare")
    if args.threads < 1 and args.threads != -1:
        raise ValueError(f"--threads is {args.threads}, expected at least 1, or -1 for all")
    read_from = [*(value for make, value in args.texts or () if make is file_prompt), args.prompts]
    if read_from.count("-") > 1:
        raise ValueError("standard input can be read once: give - once")
    inputs = [args.model, args.adapter, args.prompts, args.compare, args.compare_adapter]
    inputs += [value for make, value in args.texts or () if make is file_prompt]
    for flag, path, suffix in (("-o", args.output, ".html"), ("--png", args.png, ".png")):
        if path is None:
            continue
        if Path(path).suffix.lower() != suffix:
            raise ValueError(f"{flag} {path}: expected a name that ends in {suffix}")
        check_output(Path(path), [Path(p) for p in inputs if p not in (None, "-")])


def open_model(args: argparse.Namespace, path: str, adapter: str | None, n_ctx: int) -> Sardine:
    """One of the files, with experts."""
    model = load_model(
        lambda tell: Sardine(
            path,
            adapter=adapter,
            n_ctx=n_ctx,
            n_batch=args.batch_size,
            n_threads=None if args.threads < 0 else args.threads,
            delta_mode=args.delta_mode,
            experts=args.experts,
            progress=tell,
        ),
        path,
        program="sardine-routing",
    )
    if not model.expert_names:
        model.close()
        raise FormatError(f"{path}: this is a plain base model: nothing is routed in it", file=path)
    if model.delta_mode == "off":
        model.close()
        raise ValueError(
            f"{path} starts in delta mode off, where nothing is routed: give --delta-mode"
        )
    return model


def experts_a_token(model: Sardine) -> int:
    """How many experts act on a token in each layer that has them, with the context's settings."""
    settings = model.expert_settings(model.experts)
    if settings.weights:
        return sum(w > 0 for w in settings.weights)
    n_chosen = int(model.model.experts["expert_used_count"])
    return min(n_chosen, sum(b > -math.inf for b in settings.bias)) if settings.bias else n_chosen


def routed_prompts(
    args: argparse.Namespace, path: str, adapter: str | None, prompts: Sequence[Prompt]
) -> tuple[Sardine, list[RoutedPrompt]]:
    """Opens a file, with a context as long as the texts, and routes them.

    Raises:
        ValueError: a text is longer than the model was made for, the page would be too large, or --compare is
            asked for where all experts are muted; nothing was evaluated.
    """
    model = open_model(args, path, adapter, args.ctx_size or 16)
    try:
        if args.compare is not None and not experts_a_token(model):
            raise ValueError(
                "--compare: all experts are muted, so nothing is routed that could agree"
            )
        encoded = encode(model, prompts, chat=args.chat)
        longest = max(len(tokens) for tokens in encoded)
        trained = int(model.model.hparams["n_ctx_train"])
        if args.ctx_size is None and longest > trained:
            raise ValueError(
                f"the longest text has {longest} tokens, and the model was made for {trained}: shorten it, "
                "or ask for more with -c"
            )
        if args.ctx_size is None:
            short, model = model, model.new_context(n_ctx=longest)
            short.close()
        if args.output is not None:
            per_token = len(model.model.experts["layers"]) * experts_a_token(model)
            check_size(per_token * sum(map(len, encoded)))
        return model, list(route(model, prompts, encoded))
    except BaseException:
        model.close()
        raise


def compare(args: argparse.Namespace, model: Sardine, routed: list[RoutedPrompt]) -> Any:
    """The agreement with --compare's file on the same tokens.

    Raises:
        ValueError: the files do not have the same tokens, layers and experts.
    """
    other, second = routed_prompts(
        args, args.compare, args.compare_adapter, [r.prompt for r in routed]
    )
    with other:
        if [r.tokens for r in routed] != [r.tokens for r in second]:
            raise ValueError(
                f"{args.compare} cuts the texts into other tokens than {args.model}: it is of another model"
            )
        if list(other.model.experts["layers"]) != list(model.model.experts["layers"]):
            raise ValueError(f"{args.compare} has experts in other layers than {args.model}")
        return agreement(joined([r.routes for r in routed]), joined([r.routes for r in second]))


def _drawn(
    args: argparse.Namespace, out: dict[str, Any], routed: list[RoutedPrompt]
) -> list[tuple[Path, bytes]]:
    """The files to write, all of them finished, so that an error leaves none behind."""
    files = []
    if args.output is not None:
        from sardine_gguf.routing_page import page

        files.append((Path(args.output), page(out, routed).encode()))
    if args.png is not None:
        from sardine_gguf.routing_plot import picture

        try:
            files.append((Path(args.png), picture(out)))
        except ImportError as e:
            raise ValueError(
                f"--png needs matplotlib ({e}): pip install 'sardine_gguf[plot]'"
            ) from None
    return files


def run(args: argparse.Namespace) -> int:
    """Routes, writes and prints; errors are the caller's."""
    check_options(args)
    groups = [[make(value)] for make, value in args.texts or ()]
    groups += read_prompts(args.prompts) if args.prompts is not None else []
    prompts = distinct(groups)
    check_texts(prompts)
    model, routed = routed_prompts(args, args.model, args.adapter, prompts)
    with model:
        layers = list(model.model.experts["layers"])
        found = compare(args, model, routed) if args.compare is not None else None
        out = figures(model, routed)
        if found:
            out["compare"] = {"model": args.compare, **agreement_figures(layers, found)}
        for path, data in _drawn(args, out, routed):
            with replaced_file(path) as append:
                append(data)
        if args.json:
            print(json.dumps(out, indent=1, allow_nan=False))
        else:
            print("\n".join(report_lines(args, model, routed)))
            if found:
                print(
                    f"\nagreement with {clean_line(Path(args.compare).name)}, "
                    f"{count_text(found.n_tokens, 'token')}:"
                )
                print("\n".join(agreement_lines(layers, found)))
    for path in (args.output, args.png):
        if path is not None:
            print(f"wrote {clean_line(path)}", file=sys.stderr)
    return EXIT_OK


def report_lines(args: argparse.Namespace, model: Sardine, routed: list[RoutedPrompt]) -> list[str]:
    """The figures for people."""
    groups = list(by_group(routed).items())
    if len(groups) > 1:
        total = "all texts" if any(name == "all" for name, _ in groups) else "all"
        groups.append((total, joined([routes for _, routes in groups])))
    settings = model.expert_settings(args.experts).text(model.expert_names)
    steered = f", {settings}" if settings else ""
    head = (
        f"{clean_line(Path(args.model).name)}: share of the routing weight, "
        f"mode {model.delta_mode}{steered}"
    )
    return [head, *share_lines(model.expert_names, groups)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-routing; returns the exit code."""
    return run_program(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
