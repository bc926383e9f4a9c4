"""The name of the output: llama.cpp's {ftype} in it, and one made from the base's where none is given."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import OptionError
from .schema import DEFAULT_OUT_TYPE


def outfile(args: argparse.Namespace) -> str:
    """--outfile with {ftype} and {outtype} replaced, in upper case for {FTYPE} and {OUTTYPE}.

    Without --outfile a name in the current folder: NAME-sardine-Q4_K_M.gguf, NAME-adapter.gguf, or
    NAME-Q4_K_M.gguf for a base alone; no type for a base that is a GGUF file, whose types stay.

    Raises:
        OptionError: a type is to be put in where none is chosen.
    """
    base = Path(args.base)
    folder = base.is_dir()
    out_type = (args.outtype or DEFAULT_OUT_TYPE) if folder and not args.adapter else ""
    name: str | None = args.outfile
    if name is None:
        stem = (base.resolve().name if folder else base.stem) or "model"
        kind = "adapter" if args.adapter else "" if args.base_only else "sardine"
        parts = (stem, kind, out_type.upper())
        return "-".join(part for part in parts if part) + ".gguf"
    for key in ("ftype", "outtype"):
        if f"{{{key}}}" in name.lower() and not out_type:
            what = "an adapter" if args.adapter else f"the base {base} is a GGUF file, which"
            raise OptionError(f"outfile {name}: {what} has no out type to put in; name the file")
        name = name.replace(f"{{{key}}}", out_type).replace(f"{{{key.upper()}}}", out_type.upper())
    return name
