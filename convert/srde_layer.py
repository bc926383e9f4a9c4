"""The tensors of one augmented layer, and what their shapes must be."""

from __future__ import annotations

from dataclasses import dataclass, field

from sardine_gguf.errors import FormatError

from .file_tensor import FileTensor
from .schema import matrix_shape

# Keys of a layer's dict; each may carry the prefix "module.".
ATOMS, MIX = "vocabulary.atoms", "vocabulary.expert_atom_weights"
ROUTER = "router.gate.weight"
INDICES, LOGITS = "mask_selector.indices", "mask_selector.mask_logits"


@dataclass(frozen=True)
class SrdeLayer:
    """The tensors of one augmented layer, not loaded.

    Attributes:
        atoms: [A, n]; mix: [E, A]; importance: E tensors [n]; router: [E, H].
        indices: [n] integers, or None where mask_logits [N] select the n largest.
        base_ffn: frozen copies of the base's matrices, by "gate", "up", "down"; may be empty.
        copies: the experts' own copies of the vocabulary by their keys, where they are stored apart,
            each with the key of what they must equal.
    """

    index: int
    file: str
    atoms: FileTensor
    mix: FileTensor
    importance: tuple[FileTensor, ...]
    router: FileTensor
    indices: FileTensor | None
    mask_logits: FileTensor | None
    base_ffn: dict[str, FileTensor]
    copies: dict[str, tuple[str, FileTensor]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Positions of the layer."""
        return self.atoms.shape[1]

    def bad(self, key: str, message: str) -> FormatError:
        """A FormatError about a key of this layer."""
        where = f"srde_layers.{self.index}.{key}"
        return FormatError(f"{self.file}: {where}: {message}", file=self.file, field=where)


def check_shapes(layer: SrdeLayer, hidden: int, inner: int) -> None:
    """Checks a layer's shapes among themselves and against the base's H and I.

    Raises:
        FormatError: names the first tensor that does not fit.
    """
    n_experts, n_atoms = layer.mix.shape
    total = 3 * hidden * inner

    def expect(key: str, tensor: FileTensor, shape: tuple[int, ...], why: str) -> None:
        if tensor.shape != shape:
            raise layer.bad(key, f"shape {list(tensor.shape)}, expected {list(shape)} ({why})")

    if len(layer.atoms.shape) != 2 or layer.atoms.shape[0] != n_atoms:
        raise layer.bad(ATOMS, f"shape {list(layer.atoms.shape)}, expected [{n_atoms}, n]")
    n = layer.n
    expect(ROUTER, layer.router, (n_experts, hidden), "experts, the base's embedding length")
    for e, tensor in enumerate(layer.importance):
        expect(f"experts.{e}.importance", tensor, (n,), "one per position of the atoms")
    if layer.indices is not None:
        expect(INDICES, layer.indices, (n,), "one per position of the atoms")
    if layer.mask_logits is not None:
        expect(LOGITS, layer.mask_logits, (total,), "one per FFN parameter of the base")
    for matrix, tensor in layer.base_ffn.items():
        expect(
            f"base_ffn.{matrix}_proj.weight",
            tensor,
            matrix_shape(matrix, hidden, inner),
            "the base's matrix",
        )
    if n > total:
        raise layer.bad(ATOMS, f"{n} positions, the layer has only {total} FFN parameters")
