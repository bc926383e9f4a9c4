"""convert-sardine's command line: the options, and which of them exclude each other."""

from __future__ import annotations

import argparse
import importlib.metadata

from . import schema


def make_parser() -> argparse.ArgumentParser:
    """The program's parser."""
    parser = argparse.ArgumentParser(
        prog="convert-sardine",
        allow_abbrev=False,
        description="Write a base model and SRDE experts to one GGUF file.",
        epilog="exit codes: 0 done, 2 wrong use, 3 an input is not what it must be, "
        "4 reading or writing failed, 130 interrupted",
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="DIR_OR_GGUF",
        help="model folder (Hugging Face's or Mistral's format), or a GGUF file whose tensors are "
        "copied; of a split one any part",
    )
    parser.add_argument(
        "--srde",
        metavar="FILE_OR_DIR",
        help="checkpoint (.pt or .safetensors), or the folder that it is in",
    )
    parser.add_argument(
        "--base-only",
        action="store_true",
        help="write the base alone, an ordinary GGUF file; without --srde",
    )
    parser.add_argument(
        "-o",
        "--outfile",
        metavar="OUT.gguf",
        help="{ftype} in it becomes the out type (default: named after the base and the out type, "
        "in the current folder)",
    )
    parser.add_argument(
        "--outtype",
        type=str.lower,
        choices=schema.OUT_TYPES,
        metavar="TYPE",
        help=f"type of the base: {', '.join(schema.OUT_TYPES)} (default {schema.DEFAULT_OUT_TYPE}; "
        "only with a folder)",
    )
    parser.add_argument(
        "--delta-type",
        type=str.lower,
        choices=schema.DELTA_TYPES,
        metavar="TYPE",
        help=f"type of the experts' values: {', '.join(schema.DELTA_TYPES)} "
        "(default q8_0; f32 with --outtype f32)",
    )
    parser.add_argument(
        "--delta-mode",
        choices=schema.DELTA_MODES,
        help="mode that a runtime starts in (default sparse)",
    )
    parser.add_argument(
        "--expert-names",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="one name for each expert",
    )
    parser.add_argument(
        "--block-columns",
        type=int,
        metavar="N",
        help=f"width of a column block (default {schema.DEFAULT_BLOCK_COLUMNS}; less, in equal blocks, for "
        "rows wider than that)",
    )
    repair = parser.add_mutually_exclusive_group()
    repair.add_argument(
        "--compensation",
        choices=schema.COMPENSATIONS,
        metavar="METHOD",
        help="how the deltas make up for the base's quantization error: "
        f"{', '.join(schema.COMPENSATIONS)} (default {schema.DEFAULT_COMPENSATION}; only with a "
        "folder and a quantized outtype)",
    )
    repair.add_argument(
        "--no-compensate",
        dest="compensation",
        action="store_const",
        const="none",
        help="the same as --compensation none",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the experts alone, for any GGUF file of the same base "
        "(sardine-cli -m base.gguf --adapter OUT.gguf)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the written file back and compare all of it with the inputs before it takes its place",
    )
    _add_quantization(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be written; reads headers and positions only",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each CPU")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    noise.add_argument(
        "--verbose", action="store_true", help="list the tensors; show where an error came from"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    return parser


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization of a folder, as in llama-quantize")
    group.add_argument(
        "--imatrix", metavar="FILE", help="importance matrix of llama-imatrix, of either format"
    )
    group.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="type of the matrices in whose names the regular expression NAME is found, "
        "e.g. attn_v=q8_0; can be repeated, the first that is found decides",
    )
    group.add_argument("--pure", action="store_true", help="no mixture: one type for all matrices")
    group.add_argument(
        "--token-embedding-type", metavar="TYPE", help="type of the embedding, token_embd.weight"
    )
    group.add_argument(
        "--output-tensor-type", metavar="TYPE", help="type of the output matrix, output.weight"
    )
    group.add_argument(
        "--leave-output-tensor", action="store_true", help="keep output.weight as it is stored"
    )


def check_use(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where options exclude each other."""
    if not args.base_only:
        if args.srde is None:
            parser.error("--srde is required (or --base-only, to convert the base alone)")
        return
    of_experts = ("srde", "adapter", "compensation", "delta_type", "delta_mode", "expert_names")
    for name in (*of_experts, "block_columns"):
        if getattr(args, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')}: not with --base-only, which has no experts")


def _version() -> str:
    try:
        return importlib.metadata.version("sardine_gguf")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
