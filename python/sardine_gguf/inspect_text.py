"""Facts of a file as text for a terminal."""

from __future__ import annotations

from sardine_gguf.inspect_facts import BaseFacts, ExpertFacts, FileFacts
from sardine_gguf.packed_file import MATRICES
from sardine_gguf.units import size_text

_KINDS = {
    "model": "base and experts",
    "base": "a plain base model",
    "adapter": "experts alone, an adapter",
}


def render(facts: FileFacts) -> str:
    """The whole description."""
    lines = [f"{facts.file}: {_KINDS[facts.kind]}, {size_text(facts.size)}", *_base(facts)]
    if facts.experts:
        lines += _experts(facts.base, facts.experts)
    parts = ", ".join(f"{k} {size_text(n)}" for k, n in facts.bytes.items() if n)
    lines.append(f"  bytes      {parts}")
    if facts.experts:
        lines += ["", *_layers(facts.experts), "", *_gains(facts.experts)]
    return "\n".join(lines)


def _base(facts: FileFacts) -> list[str]:
    b = facts.base
    lines = [
        f"  base       {b.name} ({b.architecture}): {b.layers} layers of {b.embedding_length}, "
        f"feed-forward {b.feed_forward_length}, {b.head_count} heads ({b.head_count_kv} for keys), "
        f"{b.vocab_size:,} tokens"
    ]
    if b.parameters:
        types = ", ".join(f"{t.tensors} {k} ({size_text(t.bytes)})" for k, t in b.types.items())
        lines += [f"  parameters {b.parameters:,} in the base", f"  types      {types}"]
    return lines


def _experts(base: BaseFacts, x: ExpertFacts) -> list[str]:
    where = "all layers" if len(x.layers) == base.layers else f"{len(x.layers)} layers"
    types = " and ".join(x.value_types) or "none"
    shared = f" (a shared part in {' and '.join(x.shared_types)})" if x.shared_types else ""
    return [
        f"  experts    {x.count}, {x.used_count} per token, in {where}: {', '.join(x.names)}",
        f"  positions  {x.positions:,} ({x.density:.3%}), {x.values:,} values in {types}",
        f"  mode       starts in {x.mode}; compensation {x.compensation}{shared}; format {x.version}",
    ]


def _layers(x: ExpertFacts) -> list[str]:
    lines = ["  layer" + "".join(f"{name:>20}" for name in (*MATRICES, "all three"))]
    for layer in x.layers:
        cells = [(m.positions, m.density) for m in layer.matrices.values()]
        cells.append((layer.positions, layer.density))
        lines.append(f"  {layer.layer:5}" + "".join(f"{n:>12,} {d:>7.3%}" for n, d in cells))
    return lines


def _gains(x: ExpertFacts) -> list[str]:
    width = max(8, *(len(name) for name in x.names))
    lines = [f"  {'gain':{width}}  {'least':>9}  {'mean':>9}  {'most':>9}   over the layers"]
    for e, name in enumerate(x.names):
        all_gains = [layer.gains[e] for layer in x.layers]
        gains = [g for g in all_gains if g is not None]
        if len(gains) < len(all_gains):
            lines.append(f"  {name:{width}}  not finite in {len(all_gains) - len(gains)} layers")
            continue
        mean = sum(gains) / len(gains)
        lines.append(f"  {name:{width}}  {min(gains):9.6f}  {mean:9.6f}  {max(gains):9.6f}")
    return lines
