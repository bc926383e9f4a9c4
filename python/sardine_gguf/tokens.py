"""Text to token ids and back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cached_property

from sardine_gguf.arguments import flag, token_ids, wrong_type
from sardine_gguf.errors import ContextOverflow
from sardine_gguf.open_model import OpenModel


class TokenMethods(OpenModel):
    """The model's own tokenizer."""

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: str, or its UTF-8 bytes.
            add_bos: put BOS first, if the model wants one.
            special: read the names of control tokens in the text as those tokens.

        Raises:
            Cancelled: `cancel()` was called in another thread meanwhile.
            ValueError: more than 4,194,304 characters without a space between.
            InsufficientMemory: the text is too long for the free memory.
        """
        if not isinstance(text, str | bytes):
            raise wrong_type("text", text, "a str, or UTF-8 as bytes")
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return self.model.tokenize(
            text, flag("add_bos", add_bos), flag("special", special), self.session
        )

    def _prompt_tokens(self, text: str) -> list[int]:
        """The same of a prompt. Raises ContextOverflow, soon, if it cannot fit the context."""
        longest, n_ctx = self._longest_piece, self.session.n_ctx
        if len(text) > longest * n_ctx:  # bytes are no fewer than characters
            raise ContextOverflow(
                f"the prompt of {len(text)} characters has at least {-(-len(text) // longest)} tokens, more "
                f"than n_ctx {n_ctx}: load with a larger n_ctx or shorten the prompt"
            )
        return self.tokenize(text)

    @cached_property
    def _longest_piece(self) -> int:
        return self.model.longest_piece

    def detokenize(
        self,
        tokens: Sequence[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> str:
        """The text of token ids; control tokens are left out unless `special`.

        A token's bytes do not depend on those before it: `prev_tokens` is in llama-cpp-python's place and
        changes nothing.
        """
        return codecs.decode(self.detokenize_bytes(tokens, special), "utf-8", "replace")

    def detokenize_bytes(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The same as bytes, which may begin or end inside of a character."""
        special = flag("special", special)
        return b"".join(self.model.piece(t, special) for t in token_ids("tokens", tokens))

    def token_bos(self) -> int:
        """Id of the token that begins a text, -1 if there is none."""
        return self.model.bos

    def token_eos(self) -> int:
        """Id of the token that ends a text, -1 if there is none."""
        return self.model.eos

    def token_nl(self) -> int:
        """Id of the token of a line's end, or of the first byte of it."""
        return self.tokenize("\n", add_bos=False)[0]
