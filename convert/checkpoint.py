"""A SRDE checkpoint: its layers' tensors, checked against each other and against the base.

Source of the layout: the published training code saves {"srde_layers": {"0": {...}}, "config"}.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sardine_gguf.errors import FormatError

from . import pt_pickle, srde_safetensors
from .file_tensor import FileTensor
from .files import MAX_CONFIG_BYTES, read_json_if_there
from .pt_zip import PtZip
from .schema import MATRICES, MAX_EXPERTS
from .srde_layer import ATOMS, INDICES, LOGITS, MIX, ROUTER, SrdeLayer

_FILES = (
    "srde_weights.pt",
    "weights.pt",
    "srde_weights.safetensors",
    "srde_weights.safetensors.index.json",
    "weights.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
_MODULE = "module."


@dataclass
class Checkpoint:
    """All augmented layers in increasing order; E and A are the same in each.

    config is the one in the file, hub_config the one in config.json beside it.
    """

    path: Path
    layers: list[SrdeLayer]
    config: dict[str, Any] | None
    hub_config: dict[str, Any] | None
    inputs: list[Path]
    warnings: list[str] = field(default_factory=list)

    @property
    def n_experts(self) -> int:
        """E."""
        return self.layers[0].mix.shape[0]

    @property
    def n_atoms(self) -> int:
        """A."""
        return self.layers[0].mix.shape[1]


def find_file(path: Path) -> tuple[Path, Path | None]:
    """The file that a path names, and the folder whose config.json belongs to it.

    A .pt file holds its own config; a safetensors file has none but the one beside it.

    Raises:
        FormatError: a folder with none or with several of the known files.
    """
    if not path.is_dir():
        return path, path.parent if srde_safetensors.is_safetensors(path) else None
    found = [path / name for name in _FILES if (path / name).exists()]
    if len(found) != 1:
        what = " and ".join(str(f) for f in found) if found else "none of them"
        raise FormatError(
            f"{path}: expected one of {', '.join(_FILES)}, found {what}; name the "
            "file itself with --srde",
            file=str(path),
        )
    return found[0], path


def read_checkpoint(path: Path, n_layers: int) -> Checkpoint:
    """Reads a checkpoint's structure. Shapes against the base are checked by
    srde_layer.check_shapes.

    Args:
        path: a .pt or .safetensors file, or a folder that holds one.
        n_layers: layers of the base.

    Raises:
        FormatError: unknown, missing or disagreeing parts.
        OSError: a file cannot be read.
    """
    file, folder = find_file(path)
    name = str(file)
    inputs = [file]
    top: Any
    if srde_safetensors.is_safetensors(file):
        top, inputs = srde_safetensors.load(file)
    else:
        top = pt_pickle.load(PtZip(file))
    if not isinstance(top, dict) or not isinstance(top.get("srde_layers"), dict):
        found = (
            ", ".join(str(k)[:40] for k in list(top)[:6])
            if isinstance(top, dict)
            else (type(top).__name__)
        )
        raise FormatError(
            f"{name}: expected a dict with the key srde_layers, found {found}",
            file=name,
            field="srde_layers",
        )
    config = top.get("config")
    if config is not None and not isinstance(config, dict):
        raise FormatError(
            f"{name}: config: expected a dict, found {type(config).__name__}",
            file=name,
            field="config",
        )
    layers = [
        _layer(i, tensors, name) for i, tensors in _by_index(top["srde_layers"], n_layers, name)
    ]
    if not layers:
        raise FormatError(
            f"{name}: srde_layers is empty, expected at least one layer",
            file=name,
            field="srde_layers",
        )
    for layer in layers:
        if layer.mix.shape != layers[0].mix.shape:
            raise layer.bad(
                MIX,
                f"{layer.mix.shape[0]} experts and {layer.mix.shape[1]} atoms, "
                f"layer {layers[0].index} has {layers[0].mix.shape[0]} and "
                f"{layers[0].mix.shape[1]}; they must be the same in each layer",
            )
    extra = sorted(str(k)[:60] for k in top if k not in ("srde_layers", "config"))
    hub = read_json_if_there(folder / "config.json", MAX_CONFIG_BYTES) if folder else None
    return Checkpoint(
        file,
        layers,
        config,
        hub,
        inputs + ([folder / "config.json"] if folder and hub is not None else []),
        _ignored(extra, name),
    )


def _ignored(keys: list[str], file: str) -> list[str]:
    if len(keys) <= 4:
        return [f"{file}: ignored the entry {key!r} beside srde_layers" for key in keys]
    return [f"{file}: ignored {len(keys)} entries beside srde_layers: {', '.join(keys[:4])}, ..."]


def _by_index(layers: dict[Any, Any], n_layers: int, file: str) -> list[tuple[int, dict[Any, Any]]]:
    found: dict[int, dict[Any, Any]] = {}
    for key, tensors in layers.items():
        text = key.removeprefix(_MODULE) if isinstance(key, str) else str(key)
        if not (text.isascii() and text.isdigit()) or len(text) > 9 or str(int(text)) != text:
            raise FormatError(
                f"{file}: srde_layers: {str(key)[:60]!r} is not a layer number",
                file=file,
                field="srde_layers",
            )
        index = int(text)
        if index >= n_layers:
            raise FormatError(
                f"{file}: srde_layers.{index}: the base has {n_layers} layers only",
                file=file,
                field=f"srde_layers.{index}",
            )
        if index in found:
            raise FormatError(
                f"{file}: srde_layers: the layer {index} occurs twice",
                file=file,
                field=f"srde_layers.{index}",
            )
        if not isinstance(tensors, dict):
            raise FormatError(
                f"{file}: srde_layers.{index}: expected a dict of tensors, found "
                f"{type(tensors).__name__}",
                file=file,
                field=f"srde_layers.{index}",
            )
        found[index] = tensors
    return sorted(found.items())


def _layer(index: int, entries: dict[Any, Any], file: str) -> SrdeLayer:
    def bad(key: str, message: str) -> FormatError:
        where = f"srde_layers.{index}.{key}" if key else f"srde_layers.{index}"
        return FormatError(f"{file}: {where}: {message}", file=file, field=where)

    tensors: dict[str, FileTensor] = {}
    for key, value in entries.items():
        bare = str(key).removeprefix(_MODULE)
        if bare in tensors:
            raise bad(bare, "occurs twice, with and without the prefix module.")
        if not isinstance(value, FileTensor):
            raise bad(str(key)[:80], f"expected a tensor, found {type(value).__name__}")
        tensors[bare] = value

    mix = tensors.get(MIX)
    n_experts = mix.shape[0] if mix is not None and len(mix.shape) == 2 else 1
    if mix is not None and (
        len(mix.shape) != 2 or not 1 <= n_experts <= MAX_EXPERTS or mix.shape[1] < 1
    ):
        raise bad(
            MIX,
            f"shape {list(mix.shape)}, expected [experts, atoms] with 1 to {MAX_EXPERTS} experts",
        )
    importance = [f"experts.{e}.importance" for e in range(n_experts)]
    copies = {f"experts.{e}.{key}": key for e in range(n_experts) for key in (ATOMS, MIX)}
    base = {m: f"base_ffn.{m}_proj.weight" for m in MATRICES}
    required = [ATOMS, MIX, ROUTER, *importance]
    missing = [key for key in required if key not in tensors]
    if INDICES not in tensors and LOGITS not in tensors:
        missing.append(f"{INDICES} (or {LOGITS})")
    if missing:
        raise bad("", "missing " + ", ".join(missing))
    unknown = set(tensors) - {*required, *copies, *base.values(), INDICES, LOGITS}
    if unknown:
        raise bad(
            min(unknown)[:120],
            f"is not a known key ({len(unknown)} unknown); {n_experts} "
            "experts by vocabulary.expert_atom_weights",
        )
    if INDICES in tensors and LOGITS in tensors:
        raise bad(LOGITS, f"is there together with {INDICES}, expected one of them")
    for key, value in tensors.items():
        if key == INDICES:
            if not value.dtype.is_integer:
                raise bad(key, f"type {value.dtype.name}, expected integers")
        elif not value.dtype.is_float:
            raise bad(key, f"type {value.dtype.name}, expected f32, f16, bf16 or f64")
    apart = {
        key: (original, tensors[key])
        for key, original in copies.items()
        if key in tensors and not tensors[key].same_place(tensors[original])
    }
    for key, (original, copy) in apart.items():
        if copy.shape != tensors[original].shape:
            raise bad(key, f"differs from {original}, expected the same values")
    return SrdeLayer(
        index,
        file,
        tensors[ATOMS],
        tensors[MIX],
        tuple(tensors[k] for k in importance),
        tensors[ROUTER],
        tensors.get(INDICES),
        tensors.get(LOGITS),
        {m: tensors[key] for m, key in base.items() if key in tensors},
        apart,
    )
