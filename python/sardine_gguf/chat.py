"""Messages to tokens: the model's own Jinja template in a sandbox, user text never read as control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sardine_gguf._native import Model
from sardine_gguf.errors import FormatError

Message = Mapping[str, Any]

# For files without a template whose vocabulary has Mistral's control tokens.
_MISTRAL_TEMPLATE = """{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]\
{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]\
{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}\
{% else %}{{ raise_exception('unknown role ' + m.role) }}{% endif %}{% endfor %}"""


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _plain_content(message: Message) -> dict[str, Any]:
    """A copy whose content is text if it is a list of text blocks; other blocks stay for the template."""
    out = dict(message)
    content = out.get("content")
    if isinstance(content, list | tuple) and all(
        isinstance(b, Mapping) and b.get("type") == "text" for b in content
    ):
        out["content"] = "".join(str(b.get("text", "")) for b in content)
    return out


class ChatTemplate:
    """Renders messages and tokenizes the result.

    Args:
        model: gives the template (unless `template` does) and the tokenizer.
        template: Jinja source to use instead of the file's.

    Raises:
        FormatError: the file has no template or one that does not parse.
    """

    def __init__(self, model: Model, template: str | None = None) -> None:
        self._model = model
        path = model.path
        control = model.control_tokens
        source = template or model.file.get("tokenizer.chat_template")
        if source is None and "[INST]" in control and "[/INST]" in control:
            source = _MISTRAL_TEMPLATE
        if not isinstance(source, str):
            raise FormatError(
                f"{path}: the file has no chat template (tokenizer.chat_template): "
                "pass one, or use generate()",
                file=path,
                field="tokenizer.chat_template",
            )
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        env.globals["raise_exception"] = _raise
        # Jinja's own escapes all but ASCII, and HTML, neither of which a prompt wants.
        env.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = env.from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise FormatError(
                f"{path}: the chat template does not parse: {e}",
                file=path,
                field="tokenizer.chat_template",
            ) from e
        self._bos = model.token_text(model.bos) if model.bos >= 0 else ""
        self._eos = model.token_text(model.eos) if model.eos >= 0 else ""
        self._control_pattern = re.compile(
            "|".join(re.escape(t) for t in sorted(control, key=len, reverse=True)) or r"(?!)"
        )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text, control tokens spelled out. Raises ValueError if the template refuses."""
        return self._render([_plain_content(m) for m in messages], add_generation_prompt)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                bos_token=self._bos,
                eos_token=self._eos,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as e:  # a template is a program: it can fail in any way
            raise ValueError(f"the chat template refuses these messages: {e}") from e

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The prompt's token ids; names of control tokens inside messages stay plain text."""
        held: list[str] = []
        mark = self._unused_mark(messages)

        def hold(match: re.Match[str]) -> str:
            held.append(match.group())
            return f"{mark}{len(held) - 1}{mark}"

        def guard(value: Any) -> Any:
            if isinstance(value, str):
                return self._control_pattern.sub(hold, value)
            if isinstance(value, Mapping):
                return {k: v if k in ("role", "type") else guard(v) for k, v in value.items()}
            return [guard(v) for v in value] if isinstance(value, list | tuple) else value

        plain = [_plain_content(m) for m in messages]
        text = self._render([guard(m) for m in plain], add_generation_prompt)
        ids: list[int] = []
        for i, part in enumerate(re.split(f"{mark}([0-9]+){mark}", text)):
            if part:
                literal = i % 2 == 1
                ids += self._model.tokenize(
                    held[int(part)] if literal else part, False, not literal
                )
        if self._model.add_bos and self._model.bos >= 0 and ids[:1] != [self._model.bos]:
            ids.insert(0, self._model.bos)
        return ids

    @staticmethod
    def _unused_mark(messages: Sequence[Message]) -> str:
        """A private-use character that stands in no message."""
        used: set[str] = set()

        def look(value: Any) -> None:
            if isinstance(value, str):
                used.update(value)
            elif isinstance(value, Mapping):
                for v in value.values():
                    look(v)
            elif isinstance(value, list | tuple):
                for v in value:
                    look(v)

        look(messages)
        return next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
