"""The chat template of a model folder, from wherever it keeps it."""

from __future__ import annotations

from pathlib import Path

from sardine_gguf.errors import FormatError

from .files import MAX_JSON_BYTES, read_json_if_there, regular_size
from .gguf_file import Metadata

MORE = "additional_chat_templates"


def template_files(folder: Path) -> list[Path]:
    """The files that hold templates alone."""
    more = folder / MORE
    files = [folder / "chat_template.jinja", folder / "chat_template.json"]
    return [f for f in files if f.exists()] + (
        sorted(more.glob("*.jinja")) if more.is_dir() else []
    )


def template_metadata(folder: Path) -> Metadata:
    """tokenizer.chat_template and its named companions.

    In this order, as llama.cpp does: chat_template of tokenizer_config.json, chat_template.jinja
    with additional_chat_templates, chat_template.json.

    Raises:
        FormatError: a template that is no text, or whose file is not UTF-8.
    """
    template = (read_json_if_there(folder / "tokenizer_config.json") or {}).get("chat_template")
    jinja = folder / "chat_template.jinja"
    if template is None and jinja.exists():
        template = [{"name": "default", "template": _text(jinja)}]
        template += [
            {"name": path.stem, "template": _text(path)}
            for path in template_files(folder)
            if path.parent.name == MORE
        ]
    if template is None:
        template = (read_json_if_there(folder / "chat_template.json") or {}).get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": ("str", template)}
    out: Metadata = {}
    names: list[str] = []
    if not isinstance(template, list) or not all(isinstance(t, dict) for t in template):
        raise _bad(folder, "expected a text, or a list of objects with name and template")
    for entry in template:
        name, text = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            raise _bad(folder, "expected texts with names")
        if name == "default":
            out["tokenizer.chat_template"] = ("str", text)
            continue
        clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        if not clean or clean in names:
            raise _bad(folder, f"the name {name[:80]!r} is empty or occurs twice")
        names.append(clean)
        out[f"tokenizer.chat_template.{clean}"] = ("str", text)
    if names:
        out["tokenizer.chat_templates"] = ("arr[str]", names)
    return out


def _text(path: Path) -> str:
    size = regular_size(path)
    if size > MAX_JSON_BYTES:
        raise _bad(path, f"{size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(path, f"is not UTF-8: {error}") from None


def _bad(path: Path, message: str) -> FormatError:
    return FormatError(f"{path}: chat_template: {message}", file=str(path), field="chat_template")
