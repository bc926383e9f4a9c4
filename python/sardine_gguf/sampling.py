"""Sampling options: one set of defaults, the file's own where it has them."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace

from sardine_gguf._native import GgufFile, Sampler
from sardine_gguf.errors import FormatError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn. Defaults are llama.cpp's.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest; 0 or less turns it off.
        top_p: keep the smallest set of this probability; 1 turns it off.
        min_p: drop tokens below this share of the likeliest one's probability; 0 turns it off.
        seed: of the random draw; negative takes a new one each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = -1

    @staticmethod
    def from_file(file: GgufFile, seed: int = -1) -> SamplingOptions:
        """The `general.sampling.*` keys of a file over the defaults.

        Raises:
            FormatError: one of them is not finite or beyond 32 bits.
        """
        found = {}
        for name, key in (
            ("temperature", "temp"),
            ("top_k", "top_k"),
            ("top_p", "top_p"),
            ("min_p", "min_p"),
        ):
            field = f"general.sampling.{key}"
            value = file.get(field)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not math.isfinite(value) or abs(value) >= 2**31:
                raise FormatError(
                    f"{file.path}: key '{field}' is {value}, which no sampler takes",
                    file=file.path,
                    field=field,
                )
            found[name] = int(value) if name == "top_k" else float(value)
        return replace(SamplingOptions(seed=seed), **found)  # type: ignore[arg-type]

    def override(
        self,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> SamplingOptions:
        """A copy in which every argument that is not None replaces the field of its name."""
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
        }
        return replace(self, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]

    def sampler(self) -> Sampler:
        """A sampler with its random state at the start. Raises ValueError for values out of range."""
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}, expected less than 2**32")
        seed = self.seed if self.seed >= 0 else secrets.randbits(32)
        return Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed,
        )
