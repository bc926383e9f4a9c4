"""The lines that llama.cpp's perplexity tool prints."""

from __future__ import annotations

from typing import Any

CHUNK_HEADER = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence"
    "              Δp RMS            Same top p"
)


def _pair(figure: dict[str, float], width: int, digits: int, scale: float = 1) -> str:
    value, error = scale * figure["value"], scale * figure["error"]
    return f"{value:{width}.{digits}f} ± {error:{width}.{digits}f}"


def chunk_line(number: int, s: dict[str, Any]) -> str:
    """The running figures after a chunk, numbered from 1. s: Divergence.summary()."""
    return (
        f"{number:4d}    {_pair(s['ppl'], 9, 4)}    {_pair(s['ln_ppl_ratio'], 10, 5)}"
        f"    {_pair(s['kld'], 10, 5)}    {_pair(s['p_diff_rms'], 6, 3, 100)} %"
        f"    {_pair(s['same_top_p'], 6, 3, 100)} %"
    )


def _percentile_name(percent: str) -> str:
    names = {"100": "Maximum", "50": "Median ", "0": "Minimum"}
    return names.get(percent, f"{float(percent):4.1f}%  ")


def summary_lines(s: dict[str, Any]) -> list[str]:
    """The report at the end. s: Divergence.summary()."""
    correlation = s["ln_ppl_correlation"]
    lines = [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {_pair(s['ppl'], 10, 6)}",
        f"Mean PPL(base)                : {_pair(s['ppl_base'], 10, 6)}",
        "Cor(ln(PPL(Q)), ln(PPL(base))): "
        + ("     -" if correlation is None else f"{100 * correlation:6.2f}%"),
        f"Mean ln(PPL(Q)/PPL(base))     : {_pair(s['ln_ppl_ratio'], 10, 6)}",
        f"Mean PPL(Q)/PPL(base)         : {_pair(s['ppl_ratio'], 10, 6)}",
        f"Mean PPL(Q)-PPL(base)         : {_pair(s['ppl_difference'], 10, 6)}",
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {_pair(s['kld'], 10, 6)}",
    ]
    for percent, value in s["kld_percentiles"].items():
        lines.append(f"{_percentile_name(percent)} KLD: {value:10.6f}")
    lines += [
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {_pair(s['p_diff'], 6, 3, 100)} %",
    ]
    for percent, value in s["p_diff_percentiles"].items():
        lines.append(f"{_percentile_name(percent)} Δp: {100 * value:6.3f}%")
    lines += [
        f"RMS Δp    : {_pair(s['p_diff_rms'], 6, 3, 100)} %",
        f"Same top p: {_pair(s['same_top_p'], 6, 3, 100)} %",
    ]
    return lines
