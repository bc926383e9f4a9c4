"""llama.cpp's -ctk and -ctv, which here name one type for both."""

from __future__ import annotations

import argparse

from sardine_gguf.context import KV_TYPES, KvType


def add_cache_type_flags(p: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds both; --cache-type is the first."""
    for flag, name, what in (
        ("-ctk", "--cache-type-k", "keys"),
        ("-ctv", "--cache-type-v", "values"),
    ):
        names = (flag, name, "--cache-type") if flag == "-ctk" else (flag, name)
        p.add_argument(
            *names,
            dest=name.removeprefix("--").replace("-", "_"),
            choices=KV_TYPES,
            help=f"type of cached {what} (f16); one type for both",
        )


def cache_type(args: argparse.Namespace) -> KvType:
    """The type that they name. Raises ValueError where they differ."""
    key: KvType | None = args.cache_type_k
    value: KvType | None = args.cache_type_v
    if key and value and key != value:
        raise ValueError(f"-ctk is {key} and -ctv {value}, expected one type for both")
    return key or value or "f16"
