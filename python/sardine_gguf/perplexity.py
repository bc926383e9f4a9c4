"""sardine-perplexity: how well a model predicts a text, and how far it is from another."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sardine_gguf.cache_type_flags import add_cache_type_flags, cache_type
from sardine_gguf.errors import FormatError
from sardine_gguf.logits_file import LogitsFile, LogitsWriter
from sardine_gguf.model import Sardine
from sardine_gguf.output_file import check_output
from sardine_gguf.perplexity_measure import Progress, compare, measure
from sardine_gguf.perplexity_report import summary_lines
from sardine_gguf.program import EXIT_CODES, EXIT_OK, run_program
from sardine_gguf.scoring import cut

DEFAULT_CTX = 512


def build_parser() -> argparse.ArgumentParser:
    """The command line of sardine-perplexity; the flags are llama-perplexity's where it has them."""
    from sardine_gguf import __version__

    p = argparse.ArgumentParser(
        prog="sardine-perplexity",
        description="Perplexity of a text, or KL divergence of a model from a base.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    modes = ("sparse", "gain", "off")
    p.add_argument("-m", "--model", metavar="FILE", required=True, help="GGUF file to measure")
    p.add_argument("-f", "--file", metavar="FILE", help="UTF-8 text to predict (-: standard input)")
    p.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help=f"tokens of a chunk ({DEFAULT_CTX})"
    )
    p.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="tokens evaluated at a time"
    )
    p.add_argument(
        "-t", "--threads", type=int, default=-1, metavar="N", help="CPU threads (-1: all)"
    )
    p.add_argument(
        "--chunks", type=int, default=-1, metavar="N", help="chunks to evaluate (-1: all)"
    )
    p.add_argument("--delta-mode", choices=modes, help="how the experts act; default: the file's")
    add_cache_type_flags(p)
    p.add_argument(
        "--kl-divergence",
        action="store_true",
        help="compare with the base of --kl-divergence-base, or of --base-model and --base-delta-mode",
    )
    p.add_argument(
        "--kl-divergence-base",
        "--save-all-logits",
        metavar="FILE",
        dest="logits",
        help="log probabilities of the base: read with --kl-divergence, else written",
    )
    p.add_argument("--base-model", metavar="FILE", help="GGUF file of the base (default: -m's)")
    p.add_argument("--base-delta-mode", choices=modes, help="how the base's experts act")
    p.add_argument(
        "--json", action="store_true", help="the result as JSON; what runs goes to standard error"
    )
    p.add_argument("--version", action="version", version=f"sardine-perplexity {__version__}")
    return p


def read_text(path: str) -> str:
    """The text of a file, or of standard input for "-", without its last newline.

    Raises:
        FormatError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    path = "standard input" if path == "-" else path
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as e:
        raise FormatError(
            f"{path}: the text is not UTF-8 at byte {e.start}: convert it", file=path, field="text"
        ) from None


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for options that contradict each other."""
    direct = args.base_model is not None or args.base_delta_mode is not None
    if not args.kl_divergence and direct:
        raise ValueError("--base-model and --base-delta-mode need --kl-divergence")
    if args.kl_divergence and direct == (args.logits is not None):
        raise ValueError(
            "--kl-divergence needs either --kl-divergence-base FILE, or a base to run: "
            "--base-model FILE, --base-delta-mode MODE"
        )
    if args.file is None and not (args.kl_divergence and args.logits):
        raise ValueError("there is no text: name one with -f FILE")
    cache_type(args)
    if args.logits and not args.kl_divergence:
        inputs = [args.model] if args.file == "-" else [args.model, args.file]
        check_output(Path(args.logits), [Path(p) for p in inputs])


def run(args: argparse.Namespace) -> int:
    """Measures and prints; errors are the caller's."""
    check_options(args)
    with contextlib.ExitStack() as stack:
        file = None
        if args.kl_divergence and args.logits:
            file = stack.enter_context(LogitsFile(Path(args.logits)))
            if args.ctx_size not in (None, file.n_ctx):
                raise ValueError(
                    f"-c is {args.ctx_size}, but {file.path} was made with {file.n_ctx}: leave -c out"
                )
        n_ctx = file.n_ctx if file else DEFAULT_CTX if args.ctx_size is None else args.ctx_size
        if n_ctx < 4:
            raise ValueError(f"the context is {n_ctx} tokens, expected at least 4")

        def load(path: str, mode: Any) -> Sardine:
            return stack.enter_context(
                Sardine(
                    path,
                    n_ctx=n_ctx,
                    n_batch=args.batch_size,
                    n_threads=None if args.threads == -1 else args.threads,
                    delta_mode=mode,
                    kv_type=cache_type(args),
                )
            )

        model = load(args.model, args.delta_mode)
        base: Sardine | LogitsFile | None = file
        if args.kl_divergence and file is None:
            base = load(args.base_model or args.model, args.base_delta_mode)
        chunks = _chunks(args, model, base, n_ctx)
        progress = Progress(sys.stderr if args.json else sys.stdout, len(chunks))
        if base is not None:
            result = compare(model, base, chunks, progress)
            lines = ["", *summary_lines(result)]
        else:
            result = _measure(args, model, chunks, progress)
            ppl = result["ppl"]
            lines = [f"Final estimate: PPL = {ppl['value']:.4f} +/- {ppl['error']:.5f}"]
        result = {
            "model": args.model,
            "delta_mode": model.delta_mode,
            "n_ctx": n_ctx,
            "chunks": len(chunks),
            **result,
        }
    print(json.dumps(_finite(result)) if args.json else "\n".join(lines))
    return EXIT_OK


def _finite(value: Any) -> Any:
    """A copy in which null stands for figures beyond float64, which JSON has no word for."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _measure(
    args: argparse.Namespace, model: Sardine, chunks: Sequence[Sequence[int]], progress: Progress
) -> dict[str, Any]:
    if args.logits is None:
        return measure(model, chunks, None, progress)
    inputs = [Path(p) for p in (args.model, args.file) if p != "-"]
    with LogitsWriter(Path(args.logits), model.n_vocab, chunks, inputs) as writer:
        result = measure(model, chunks, writer, progress)
        writer.commit()
    return result


def _chunks(
    args: argparse.Namespace, model: Sardine, base: Sardine | LogitsFile | None, n_ctx: int
) -> list[list[int]]:
    """The text's chunks, which the base must have as well."""
    if base is not None and base.n_vocab != model.n_vocab:
        path = base.path if isinstance(base, LogitsFile) else base.model.path
        raise FormatError(
            f"{path}: the base has a vocabulary of {base.n_vocab} tokens, {args.model} has {model.n_vocab}",
            file=str(path),
            field="n_vocab",
        )
    found: list[list[int]] | None = None
    if args.file is not None:
        text = read_text(args.file)
        found = cut(model.tokenize(text), n_ctx, args.chunks)
    if isinstance(base, LogitsFile):
        stored: list[list[int]] = base.chunks.tolist()
        if args.chunks == 0 or args.chunks < -1:
            cut([], n_ctx, args.chunks)  # says what is wrong
        stored = stored[: args.chunks] if args.chunks > 0 else stored
        if found is not None and found[: len(stored)] != stored:
            raise ValueError(f"{base.path} was made from another text than {args.file}")
        return stored
    assert found is not None
    if isinstance(base, Sardine) and cut(base.tokenize(text), n_ctx, args.chunks) != found:
        raise ValueError(f"{base.model.path} cuts the text into other tokens than {args.model}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sardine-perplexity; returns the exit code."""
    return run_program(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
