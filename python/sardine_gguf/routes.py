"""What the router chose, as arrays, and the figures that people ask of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Routes:
    """The experts of some tokens.

    Attributes:
        ids: int32 [n_layers_with_experts, n_tokens, k].
        weights: float32, the same shape; of a token and layer they sum to 1, the largest first.
        n_experts: of the model.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    n_experts: int

    @property
    def n_tokens(self) -> int:
        """Tokens routed."""
        return int(self.ids.shape[1])

    @property
    def n_layers(self) -> int:
        """Layers with experts."""
        return int(self.ids.shape[0])

    def dense(self) -> Floats:
        """The weight of every expert, 0 where it was not chosen: [n_layers, n_tokens, n_experts]."""
        out = np.zeros((*self.ids.shape[:2], self.n_experts))
        np.put_along_axis(out, self.ids.astype(np.int64), self.weights.astype(np.float64), axis=2)
        return out

    def by_layer(self) -> Floats:
        """Mean weight of each expert in each layer, [n_layers, n_experts]; rows sum to 1."""
        return (
            self.dense().mean(axis=1)
            if self.n_tokens
            else np.zeros((self.n_layers, self.n_experts))
        )

    def by_token(self) -> Floats:
        """Mean weight of each expert over the layers, [n_tokens, n_experts]; rows sum to 1."""
        return (
            self.dense().mean(axis=0)
            if self.n_layers
            else np.zeros((self.n_tokens, self.n_experts))
        )

    def shares(self) -> Floats:
        """Share of each expert in all tokens and layers, [n_experts]; they sum to 1, or 0 without routes."""
        return self.by_layer().mean(axis=0) if self.n_layers else np.zeros(self.n_experts)

    def leading(self) -> NDArray[np.int64]:
        """The expert with the largest share of each token, [n_tokens]; -1 where nothing is routed."""
        shares = self.by_token()
        if not shares.size:
            return np.full(self.n_tokens, -1, np.int64)
        return np.where(shares.any(axis=1), shares.argmax(axis=1), -1)


def joined(parts: list[Routes]) -> Routes:
    """The tokens of several evaluations of one context, one after the other; parts are not empty."""
    return Routes(
        np.concatenate([p.ids for p in parts], axis=1),
        np.concatenate([p.weights for p in parts], axis=1),
        parts[0].n_experts,
    )


@dataclass(frozen=True)
class Agreement:
    """How alike two routings of the same tokens are, each from 0 to 1 by layer, float64 [n_layers].

    Attributes:
        same_first: share of tokens whose first expert is the same.
        same_set: share of tokens with the same experts, in any order.
        overlap: mean share of a token's experts that both chose.
        weight: mean of the smaller of both weights, summed over the experts: 1 if they are equal.
    """

    n_tokens: int
    same_first: Floats
    same_set: Floats
    overlap: Floats
    weight: Floats

    def total(self) -> dict[str, float]:
        """Means over the layers."""
        return {name: float(getattr(self, name).mean()) for name in AGREEMENTS}


AGREEMENTS = ("same_first", "same_set", "overlap", "weight")


def agreement(a: Routes, b: Routes) -> Agreement:
    """Compares two routings token by token.

    Raises:
        ValueError: they are not of the same tokens, layers, experts and number of experts a token.
    """
    if a.ids.shape != b.ids.shape or a.n_experts != b.n_experts or not a.ids.size:
        raise ValueError(
            f"routes of {_shape(a)} cannot be compared with routes of {_shape(b)}: they must be the same, "
            "and not none"
        )
    first, second = a.dense(), b.dense()
    chosen = (np.sort(a.ids, axis=2) == np.sort(b.ids, axis=2)).all(axis=2)
    both = (a.ids[..., :, None] == b.ids[..., None, :]).any(axis=3).mean(axis=2)
    return Agreement(
        n_tokens=a.n_tokens,
        same_first=(a.ids[..., 0] == b.ids[..., 0]).mean(axis=1),
        same_set=chosen.mean(axis=1),
        overlap=both.mean(axis=1),
        weight=np.minimum(first, second).sum(axis=2).mean(axis=1),
    )


def _shape(r: Routes) -> str:
    layers, tokens, k = r.ids.shape
    return f"{layers} layers, {tokens} tokens, {k} of {r.n_experts} experts"
