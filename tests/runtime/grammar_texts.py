"""Random rules of grammars."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


def rules(terminals: Sequence[str], repeats: Sequence[str]) -> st.SearchStrategy[str]:
    """Terminals, repeated, one of several or one after the other, and the same of these."""

    def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return (
            st.tuples(inner, st.sampled_from(repeats)).map(lambda t: f"({t[0]}){t[1]}")
            | st.lists(inner, min_size=1, max_size=3).map(lambda t: "(" + " | ".join(t) + ")")
            | st.lists(inner, min_size=1, max_size=3).map(" ".join)
        )

    return st.recursive(st.sampled_from(terminals), compound, max_leaves=8)
