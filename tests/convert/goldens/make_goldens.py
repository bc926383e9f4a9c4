"""Writes what llama.cpp's own converter makes of the folders of golden_folders.py.

    python tests/convert/goldens/make_goldens.py LLAMA_CPP

LLAMA_CPP is the folder with convert_hf_to_gguf.py: vendor/llama.cpp in the source package of the
llama-cpp-python that pyproject.toml names (pip download --no-binary :all: --no-deps). It needs
torch, transformers, mistral-common and sentencepiece. One JSON file is written for each case, beside
this script.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main(source: Path) -> None:
    """Converts every case."""
    sys.path[:0] = [str(source), str(source / "gguf-py"), str(HERE.parent)]
    import conversion.base
    import convert_hf_to_gguf
    from golden_folders import CASES, build, digest

    # llama.cpp knows a splitting rule by the tokens that a full vocabulary gives for a certain
    # text; a vocabulary of 320 tokens gives none of them, whatever its rule.
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "tekken"
    for old in HERE.glob("*.json"):
        old.unlink()
    for case in CASES:
        with tempfile.TemporaryDirectory() as work:
            folder, out = build(case, Path(work)), Path(work) / "out.gguf"
            sys.argv = ["", str(folder), "--outfile", str(out), "--outtype", case.outtype]
            sys.argv += ["--mistral-format"] if case.native else []
            try:
                convert_hf_to_gguf.main()
                golden = digest(out)
            except (AssertionError, KeyError) as error:
                golden = {"error": repr(error)}
        (HERE / f"{case.name}.json").write_text(lines(golden) + "\n")


def lines(golden: dict[str, Any]) -> str:
    """The golden as JSON, a line for each key and tensor."""
    parts = []
    for name, value in golden.items():
        if isinstance(value, dict):
            rows = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n }")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
