"""The experts' colours: the same on a terminal, in a report and in a picture."""

from __future__ import annotations

import colorsys

# Told apart also by those who do not see all colours, and by their brightness (after Paul Tol's schemes);
# each is readable as text on white and on black.
_FIRST = (
    "#4477aa", "#ee6677", "#228833", "#b8941f", "#2aa5c4", "#aa3377", "#8a8a8a", "#ee7733",
    "#009988", "#7766cc",
)  # fmt: skip
_GOLDEN = 0.618033988749895


def expert_colours(n: int) -> list[str]:
    """ "#rrggbb" of each expert."""
    more = (
        colorsys.hls_to_rgb((0.1 + i * _GOLDEN) % 1.0, (0.45, 0.58, 0.52)[i % 3], 0.6)
        for i in range(max(0, n - len(_FIRST)))
    )
    return [*_FIRST[:n], *("#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in more)]


def sgr_colour(colour: str) -> str:
    """The escape sequence that sets a text's colour to the nearest of xterm's 256."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    levels = (0, 95, 135, 175, 215, 255)
    near = [min(range(6), key=lambda i: abs(levels[i] - c)) for c in rgb]
    cube = 16 + 36 * near[0] + 6 * near[1] + near[2]
    grey_level = min(23, max(0, round((sum(rgb) / 3 - 8) / 10)))
    grey = 8 + 10 * grey_level
    cube_error = sum((levels[i] - c) ** 2 for i, c in zip(near, rgb, strict=True))
    code = 232 + grey_level if sum((grey - c) ** 2 for c in rgb) < cube_error else cube
    return f"\x1b[38;5;{code}m"
