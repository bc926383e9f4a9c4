"""Messages to tokens: the model's own Jinja template, user text never read as special tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from sardine_gguf._native import Model
from sardine_gguf.errors import FormatError
from sardine_gguf.messages import Message, TemplateStyle, check_messages, normalise
from sardine_gguf.prompt_parts import prompt_parts
from sardine_gguf.special_text import SpecialText
from sardine_gguf.template_process import TEMPLATES, TemplateRefusal, TemplateSyntax
from sardine_gguf.think_prompt import Block, default_think_prompt, with_think_prompt

__all__ = ["ChatTemplate", "Message"]

# For files without a template whose vocabulary has Mistral's control tokens.
_MISTRAL_TEMPLATE = """{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]\
{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]\
{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}\
{% else %}{{ raise_exception('unknown role ' + m.role) }}{% endif %}{% endfor %}"""


class ChatTemplate:
    """Renders messages and tokenizes the result.

    Messages are OpenAI's; thoughts of an assistant may come as `reasoning_content` or as blocks
    {"type": "thinking", "thinking": text}. A last assistant message with "prefix": True is continued.

    Args:
        model: gives the template (unless `template` does) and the tokenizer.
        template: Jinja source to use instead of the file's.

    Raises:
        FormatError: the file has no template or one that does not parse.
    """

    def __init__(self, model: Model, template: str | None = None) -> None:
        self._model = model
        path = model.path
        special = {t: i for t, i in model.control_tokens.items() if t and not t.isspace()}
        is_mistral = "[INST]" in special and "[/INST]" in special
        source = template or model.file.get("tokenizer.chat_template")
        if source is None and is_mistral:
            source = _MISTRAL_TEMPLATE
        if not isinstance(source, str):
            raise FormatError(
                f"{path}: the file has no chat template (tokenizer.chat_template): "
                "pass one, or use generate()",
                file=path,
                field="tokenizer.chat_template",
            )
        try:
            TEMPLATES.check(source)
        except (TemplateSyntax, TemplateRefusal) as e:
            raise FormatError(
                f"{path}: the chat template does not parse: {e}",
                file=path,
                field="tokenizer.chat_template",
            ) from e
        self._source = source
        self._style = TemplateStyle.of(source, is_mistral=is_mistral)
        self._bos = model.token_text(model.bos) if model.bos >= 0 else ""
        self._eos = model.token_text(model.eos) if model.eos >= 0 else ""
        self._special = SpecialText(special)
        # libllama finds these in any text, parsed or not.
        always = [t for t, i in special.items() if not model.is_control(i) and len(t) > 1]
        self._always_found = re.compile(
            "|".join(re.escape(t) for t in sorted(always, key=len, reverse=True)) or r"(?!)"
        )

    @cached_property
    def think_prompt(self) -> list[Block] | None:
        """The template's default system message, in blocks, if it asks for thoughts; None otherwise."""
        if not (self._style.thinking and self._style.blocks):
            return None
        try:
            return default_think_prompt(self.render([{"role": "user", "content": "."}]))
        except ValueError:
            return None

    def with_think_prompt(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with `think_prompt`, if any, added to a system message that they begin with."""
        check_messages(messages)
        return with_think_prompt(messages, self.think_prompt) if self.think_prompt else messages

    @property
    def source(self) -> str:
        """The template's Jinja source."""
        return self._source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text, special tokens spelled out. Raises ValueError if the template refuses."""
        return self._render(normalise(messages, self._style), add_generation_prompt)

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        marks: Mapping[str, str] | None = None,
    ) -> str:
        """The output; with marks, they stand for those names in the template's constants and variables."""
        marks = marks or {}
        bos, eos = (marks.get(t, t) for t in (self._bos, self._eos))
        continued = bool(messages) and messages[-1].get("prefix") is True
        if continued and messages[-1].get("role") != "assistant":
            raise ValueError('"prefix" is for a last message of the assistant, which is continued')
        variables = {
            "messages": messages,
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": add_generation_prompt and not continued,
        }
        try:
            text = TEMPLATES.render(self._source, variables, marks)
        except TemplateRefusal as e:
            raise ValueError(f"the chat template refuses these messages: {e}") from e
        if continued and eos and text.rstrip().endswith(eos):
            return text.rstrip().removesuffix(eos)
        return text

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The prompt's token ids; names of special tokens inside messages stay plain text."""
        check_messages(messages)
        parts = prompt_parts(
            lambda given, marks: self._render(given, add_generation_prompt, marks),
            self._special,
            normalise(messages, self._style),
            self._source,
            (self._bos, self._eos),
        )
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._plain_ids(part)
        if self._model.add_bos and self._model.bos >= 0 and ids[:1] != [self._model.bos]:
            ids.insert(0, self._model.bos)
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of text in which nothing is a special token."""
        ids: list[int] = []
        begin = 0
        while match := self._always_found.search(text, begin):
            ids += self._model.tokenize(text[begin : match.start() + 1], False, False)
            begin = match.start() + 1
        return ids + self._model.tokenize(text[begin:], False, False) if text[begin:] else ids
