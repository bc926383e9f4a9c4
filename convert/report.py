"""What a conversion did, and how to say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sardine_gguf.units import size_text

from .gguf_file import TensorSpec
from .verify import Verification

_COMPENSATED = {
    "none": "",
    "residual": ", its error at the positions carried by the experts",
    "extracted": ", quantized without the weights at the positions, which are stored beside",
}


def one_line(text: str) -> str:
    """Text as one line without control characters, whatever a file put into it."""
    return "".join(c if c.isprintable() else " " for c in text)


@dataclass
class ConversionReport:
    """The result of convert().

    Attributes:
        outfile: where the file is, or would be in a dry run.
        size: bytes of the file; sizes: bytes of its parts (base, router, index, values, header).
        layers: the augmented layers, none for a base alone; n_layers: those of the base.
        positions: changed FFN parameters by matrix, all layers together.
        parameters: FFN parameters by matrix in the augmented layers.
        tensors: every tensor of the file in order; types: how many tensors have each ggml type.
        adapter: the file holds the experts alone.
        verification: what verify=True compared; None without it.
        warnings, notes: texts for people.
    """

    outfile: Path
    size: int
    sizes: dict[str, int]
    n_layers: int
    layers: list[int]
    expert_names: list[str]
    top_k: int
    delta_mode: str
    delta_type: str
    out_type: str | None
    positions: dict[str, int]
    parameters: dict[str, int]
    tensors: list[TensorSpec]
    type_names: dict[int, str]
    compensation: str = "none"
    dry_run: bool = False
    adapter: bool = False
    verification: Verification | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def density(self, matrix: str | None = None) -> float:
        """Share of changed parameters in one matrix kind, or in all three, 0 to 1."""
        kinds = [matrix] if matrix else list(self.positions)
        return sum(self.positions[k] for k in kinds) / sum(self.parameters[k] for k in kinds)

    def type_counts(self) -> dict[str, tuple[int, int]]:
        """Tensors and bytes of each type."""
        out: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            name = self.type_names.get(tensor.type, f"type {tensor.type}")
            n, size = out.get(name, (0, 0))
            out[name] = (n + 1, size + tensor.nbytes)
        return out

    def summary(self) -> str:
        """A few lines for the terminal."""
        parts = ", ".join(f"{name} {size_text(n)}" for name, n in self.sizes.items() if n)
        types = ", ".join(
            f"{n} {name} ({size_text(size)})" for name, (n, size) in self.type_counts().items()
        )
        base = "not in the file, which is an adapter" if self.adapter else self.out_type
        return "\n".join(
            [
                f"{'would write' if self.dry_run else 'wrote'} {self.outfile}: {size_text(self.size)}",
                *(self._experts() if self.layers else [f"  layers     {self.n_layers}"]),
                f"  bytes      {parts}",
                f"  tensors    {len(self.tensors)}: {types}",
                f"  base       {base or 'copied from the GGUF file'}"
                + _COMPENSATED[self.compensation],
                f"  deltas     {self.delta_type}, starts in mode {self.delta_mode}"
                if self.layers
                else "  deltas     none: the base alone",
                *([f"  verified   {self.verification.summary()}"] if self.verification else []),
            ]
        )

    def _experts(self) -> list[str]:
        layers = f"{len(self.layers)} of {self.n_layers} layers"
        if len(self.layers) != self.n_layers:
            layers += f" ({_ranges(self.layers)})"
        kinds = ", ".join(f"{m} {n:,} ({self.density(m):.3%})" for m, n in self.positions.items())
        return [
            f"  experts    {len(self.expert_names)}, {self.top_k} per token: "
            + ", ".join(self.expert_names),
            f"  layers     {layers}",
            f"  positions  {sum(self.positions.values()):,} ({self.density():.3%}): {kinds}",
        ]

    def plan(self) -> str:
        """One line for each tensor; a GGUF base's names may hold any characters."""
        names = [one_line(t.name) for t in self.tensors]
        width = max(map(len, names))
        return "\n".join(
            f"{name:{width}}  {self.type_names.get(t.type, str(t.type)):5}  "
            f"{'[' + ', '.join(map(str, t.ne)) + ']':>18}  {size_text(t.nbytes):>10}"
            for name, t in zip(names, self.tensors, strict=True)
        )


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
