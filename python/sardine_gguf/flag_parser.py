"""Command lines that say what was probably meant."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from sardine_gguf.terminal import clean_line


class Parser(argparse.ArgumentParser):
    """Says what was probably meant by a flag that there is not."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with one more hint."""
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            known = [s for action in self._actions for s in action.option_strings]
            near = difflib.get_close_matches(word.split("=")[0], known, n=1)
            if word.lower().endswith(".gguf"):
                message += f" (did you mean -m {word}?)"
            elif not word.startswith("-"):
                message += " (a model is named with -m, a question with -p)"
            elif near:
                message += f" (did you mean {near[0]}?)"
        super().error(clean_line(message))
