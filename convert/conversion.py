"""convert(): a base model and a SRDE checkpoint into one GGUF file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import gguf
from sardine_gguf.errors import FormatError

from . import schema
from .adapter import adapter_metadata
from .atomic import check_destination
from .base import Base
from .base_gguf import check_ffn, check_runs, read_gguf
from .base_hf import read_folder
from .checkpoint import Checkpoint, find_file, read_checkpoint
from .choices import (
    check_verify,
    choose_compensation,
    choose_delta_type,
    choose_names,
    folder_quantization,
    refuse_base_options,
    thread_count,
)
from .compare import choose_top_k, compare_base_ffn, compare_configs
from .deltas import DeltaPart, delta_part
from .gguf_file import Metadata, pack_header, padded
from .options import OptionError, Quantization, QuantOptions
from .order import file_order
from .report import ConversionReport
from .srde_layer import check_shapes
from .values import check_values
from .verify import verify_file
from .writer import Progress, Reading, write_file

PathLike = str | os.PathLike[str]


def convert(
    base: PathLike,
    srde: PathLike,
    outfile: PathLike,
    *,
    outtype: str | None = None,
    delta_type: str | None = None,
    delta_mode: str = "sparse",
    expert_names: Sequence[str] | None = None,
    block_columns: int | None = None,
    compensation: str | None = None,
    shared_type: str = schema.SHARED_TYPE,
    adapter: bool = False,
    verify: bool = False,
    force: bool = False,
    dry_run: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    **quant: Unpack[QuantOptions],
) -> ConversionReport:
    """Writes the base and the experts to one GGUF file, which appears complete or not at all.

    Args:
        base: a model folder in Hugging Face's or Mistral's format, or a GGUF file (of a split one
            any part), whose tensors are copied as they are.
        srde: a checkpoint file (.pt, .safetensors or its .index.json), or the folder it is in.
        outtype: one of schema.OUT_TYPES (default q4_k_m) for a folder; None for a GGUF base.
        delta_type: f32, f16 or q8_0; the default is q8_0, and f32 if outtype is f32.
        delta_mode: the mode that a runtime starts in, sparse or gain.
        expert_names: one unique name for each expert.
        block_columns: width of a column block, 1 to 65536; None: schema.default_block_columns.
        compensation: none, residual or extracted (compensation.py), for a quantized folder; the
            default is residual there and none elsewhere.
        shared_type: of the values that extracted keeps beside the experts': f32, f16 or q8_0.
        adapter: write the experts alone, for any file of the same base; outtype is None then.
        verify: read the written file back before it takes its place, and compare it with the inputs.
        force: replace an existing output.
        dry_run: read headers and positions only, write nothing.
        n_threads: for quantizing; the default is one for each CPU.
        imatrix, tensor_types, pure, token_embedding_type, output_tensor_type, leave_output_tensor:
            see options.quantization(); for a folder only.

    Raises:
        FormatError: an input is not what it must be, or the output may not be written there.
        ValueError: an option is wrong.
        OSError: reading or writing failed, or verify found a difference (VerificationError). The
            output is then as it was before.
    """
    base_path, srde_path, out_path = Path(base), Path(srde), Path(outfile)
    threads = thread_count(n_threads)
    if adapter:
        refuse_base_options(outtype, quant, "an adapter file holds no base; leave the option out")
    check_verify(verify, dry_run)
    how = folder_quantization(base_path, outtype, quant)
    deltas = choose_delta_type(delta_type, how)
    if delta_mode not in schema.DELTA_MODES:
        raise OptionError(f"delta mode {delta_mode!r}: expected {' or '.join(schema.DELTA_MODES)}")
    out_type = how.out_type if how is not None and not adapter else None
    method = choose_compensation(compensation, out_type)
    if shared_type not in schema.DELTA_TYPES:
        raise OptionError(f"shared type {shared_type!r}: expected {', '.join(schema.DELTA_TYPES)}")
    if block_columns is not None and (
        type(block_columns) is not int or not 1 <= block_columns <= schema.MAX_BLOCK_COLUMNS
    ):
        raise OptionError(
            f"block columns {block_columns!r}: expected 1 to {schema.MAX_BLOCK_COLUMNS}"
        )
    check_destination(
        out_path, [p for p in (base_path, find_file(srde_path)[0]) if p.is_file()], force
    )
    model = _read_base(base_path, how, threads)
    checkpoint = read_checkpoint(srde_path, model.layers)
    check_destination(out_path, [*model.inputs, *checkpoint.inputs], force)

    warnings = [*model.warnings, *checkpoint.warnings]
    for layer in checkpoint.layers:
        check_shapes(layer, model.hidden, model.inner)
    layers = [layer.index for layer in checkpoint.layers]
    check_ffn(model, layers, base_path)
    _check_gguf(model, base_path)
    top_k = choose_top_k(checkpoint, warnings)
    names = choose_names(expert_names, checkpoint.n_experts)
    compare_configs(checkpoint, model, warnings)
    compare_base_ffn(checkpoint, model, warnings)
    if block_columns is None:
        block_columns = schema.default_block_columns(model.hidden, model.inner)
    reading = Reading(checkpoint.layers, progress)
    parts = []
    for layer in checkpoint.layers:
        reading.positions(layer)
        parts.append(
            delta_part(
                layer,
                model.hidden,
                model.inner,
                block_columns,
                deltas,
                threads,
                method,
                shared_type,
            )
        )
    if adapter:
        model = _without_tensors(model, base_path)
    own = _metadata(checkpoint, top_k, names, delta_mode, block_columns, method)
    metadata = {**model.metadata, **own}
    ordered = list(parts) if adapter else file_order(model.parts, parts)
    report = _report(out_path, model, parts, metadata, names, top_k, delta_mode, deltas, dry_run)
    report.compensation = method
    report.tensors = [s for part in ordered for s in part.specs]
    report.warnings, report.notes, report.adapter = warnings, list(model.notes), adapter

    def check(written: Path) -> None:
        if not adapter:
            _check_joined(model, written, base_path)
        if verify:
            report.verification = verify_file(written, ordered, progress)

    if not dry_run:
        # A checkpoint that cannot be used fails before the long part.
        for layer in checkpoint.layers:
            reading.values(layer)
            check_values(layer, deltas)
        write_file(out_path, metadata, ordered, model.alignment, force, progress, check)
    return report


def write_base(
    base: PathLike,
    outfile: PathLike,
    outtype: str | None = None,
    *,
    verify: bool = False,
    force: bool = False,
    dry_run: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    **quant: Unpack[QuantOptions],
) -> ConversionReport:
    """Converts a base alone, to an ordinary GGUF file without experts. Arguments as convert().

    Raises: as convert().
    """
    base_path, out_path = Path(base), Path(outfile)
    threads = thread_count(n_threads)
    check_verify(verify, dry_run)
    how = folder_quantization(base_path, outtype, quant)
    check_destination(out_path, [base_path] if base_path.is_file() else [], force)
    model = _read_base(base_path, how, threads)
    check_destination(out_path, model.inputs, force)
    _check_gguf(model, base_path)
    report = _report(out_path, model, [], model.metadata, [], 0, "", "", dry_run)
    report.warnings, report.notes = list(model.warnings), list(model.notes)

    def check(written: Path) -> None:
        _check_joined(model, written, base_path)
        if verify:
            report.verification = verify_file(written, model.parts, progress)

    if not dry_run:
        write_file(out_path, model.metadata, model.parts, model.alignment, force, progress, check)
    return report


def _read_base(path: Path, how: Quantization | None, n_threads: int) -> Base:
    return read_folder(path, how, n_threads) if how else read_gguf(path)


def _check_gguf(model: Base, path: Path) -> None:
    """Of a folder's conversion every key and tensor is known; a GGUF base may be anything."""
    if path.is_file() and len(model.inputs) == 1:
        check_runs(path, path)


def _check_joined(model: Base, written: Path, path: Path) -> None:
    """The parts of a split base make a whole in the written file first."""
    if path.is_file() and len(model.inputs) > 1:
        check_runs(written, path)


def _without_tensors(model: Base, path: Path) -> Base:
    """What an adapter file keeps of its base."""
    return dataclasses.replace(
        model,
        metadata=adapter_metadata(model, path),
        parts=[],
        alignment=schema.MIN_ALIGNMENT,
        out_type=None,
        notes=[],
    )


def _metadata(
    checkpoint: Checkpoint,
    top_k: int,
    names: list[str],
    delta_mode: str,
    block_columns: int,
    compensation: str,
) -> Metadata:
    version = schema.SHARED_VERSION if compensation == "extracted" else schema.VERSION
    return {
        schema.KEY_VERSION: ("u32", version),
        schema.KEY_EXPERT_COUNT: ("u32", checkpoint.n_experts),
        schema.KEY_EXPERT_USED_COUNT: ("u32", top_k),
        schema.KEY_EXPERT_NAMES: ("arr[str]", names),
        schema.KEY_DELTA_MODE: ("str", delta_mode),
        schema.KEY_LAYERS: ("arr[u32]", [layer.index for layer in checkpoint.layers]),
        schema.KEY_BLOCK_COLUMNS: ("u32", block_columns),
        schema.KEY_COMPENSATION: ("str", compensation),
    }


def _report(
    path: Path,
    model: Base,
    parts: list[DeltaPart],
    metadata: Metadata,
    names: list[str],
    top_k: int,
    mode: str,
    deltas: str,
    dry_run: bool,
) -> ConversionReport:
    base = [s for part in model.parts for s in part.specs]
    own = [s for part in parts for s in part.specs]
    header = len(pack_header(metadata, [*own, *base], model.alignment))
    sizes = {"base": 0, "router": 0, "index": 0, "values": 0, "header": header}
    for s in base:
        sizes["base"] += padded(s.nbytes, model.alignment)
    for s in own:
        kind = s.name.rsplit(".", 1)[1]
        group = {"weight": "router", "mean": "router", "row_ptr": "index", "col": "index"}
        sizes[group.get(kind, "values")] += padded(s.nbytes, model.alignment)
    return ConversionReport(
        outfile=path,
        size=sum(sizes.values()),
        sizes=sizes,
        n_layers=model.layers,
        layers=[p.layer.index for p in parts],
        expert_names=names,
        top_k=top_k,
        delta_mode=mode,
        delta_type=deltas,
        out_type=model.out_type,
        positions={m: sum(p.counts[m] for p in parts) for m in schema.MATRICES},
        parameters=dict.fromkeys(schema.MATRICES, model.hidden * model.inner * len(parts)),
        tensors=[*own, *base],
        type_names={int(t): t.name.lower() for t in gguf.GGMLQuantizationType},
        dry_run=dry_run,
    )


__all__ = ["ConversionReport", "FormatError", "OptionError", "convert", "write_base"]
