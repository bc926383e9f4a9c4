"""The targets for a GPU beside what tools/check_gpu.py measured."""

from __future__ import annotations

from typing import Any

_LLAMA = "llama fa=1,ub=512,repack=0"
# Name, the results' entry, test and runner of both speeds, must, goal.
_RATIOS = (
    ("sparse 1 %, decode / off", "speeds 1 %", "tg64 sparse", "tg64 off", 0.90, 0.96),
    ("sparse 4 %, decode / off", "speeds 4 %", "tg64 sparse", "tg64 off", 0.80, 0.88),
    ("off, decode / llama.cpp", "speeds 1 %", "tg64 off", f"tg64 {_LLAMA}", 0.90, 1.00),
    ("sparse 1 %, prefill 512 / off", "speeds 1 %", "pp512 sparse", "pp512 off", 0.90, 0.95),
    (
        "sparse 1 %, decode / off, one graph",
        "speeds 1 %, one graph",
        "tg64 sparse",
        "tg64 off",
        0.90,
        0.96,
    ),
)
_MEMORY = ("device GiB, 1 %, n_ctx 4096", "device MiB, 1 %, n_ctx 4096", 10.5, 10.0)
_CHECKS = (
    ("GPU equals CPU, kernels and models", "tests"),
    ("the same in one graph per step", "graph"),
    ("memcheck is clean", "memcheck"),
    ("racecheck is clean", "racecheck"),
    ("the CPU's own tests on the GPU", "parity"),
)


def _row(name: str, must: str, goal: str, found: str, verdict: str) -> str:
    return f"| {name:36} | {must:>5} | {goal:>5} | {found:>9} | {verdict:12} |"


def _verdict(value: float, must: float, goal: float) -> str:
    """More is better if the goal is above the must."""
    sign = 1 if goal > must else -1
    return (
        "goal" if sign * (value - goal) >= 0 else "must" if sign * (value - must) >= 0 else "MISSED"
    )


def _outcome(result: Any) -> tuple[str, str]:
    """Of a step: pytest's count, and whether it succeeded."""
    if not isinstance(result, dict):
        return "", "not run"
    counts = [line for line in result["tail"] if " passed" in line or " failed" in line]
    words = counts[-1].replace("=", "").split(" in ")[0].split(",") if counts else []
    short = "/".join(w.split()[0] for w in words if w.strip().endswith((" passed", " failed")))
    return short, "ok" if result["code"] == 0 else "FAILED" if result["code"] > 0 else "no result"


def table(results: dict[str, Any]) -> str:
    """One line for each target: what is asked for, what was found, and a verdict."""
    lines = [_row("target", "must", "goal", "measured", "verdict")]
    for name, entry, one, other, must, goal in _RATIOS:
        found = results.get(entry, {})
        value = found[one] / found[other] if one in found and found.get(other) else None
        text, verdict = (
            ("", "not measured") if value is None else (f"{value:.3f}", _verdict(value, must, goal))
        )
        lines.append(_row(name, f"{must:.2f}", f"{goal:.2f}", text, verdict))
    name, entry, must, goal = _MEMORY
    text, verdict = "", "not measured"
    if entry in results:
        gib = results[entry] / 1024
        text, verdict = f"{gib:.2f}", _verdict(gib, must, goal)
    lines.append(_row(name, f"{must:.1f}", f"{goal:.1f}", text, verdict))
    for name, entry in _CHECKS:
        lines.append(_row(name, "", "", *_outcome(results.get(entry))))
    return "\n".join(lines)
