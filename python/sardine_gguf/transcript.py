"""The file of -o: what was said, as text."""

from __future__ import annotations

from pathlib import Path


class Transcript:
    """Writes each turn when it is over. An existing file is replaced, as by llama.cpp's -o.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115

    def add(self, question: str, answer: str) -> None:
        """Appends a turn; what a person said is quoted."""
        quoted = "".join(f"> {line}\n" for line in question.splitlines())
        try:
            self._file.write(f"{quoted}\n{answer}\n\n")
            self._file.flush()
        except OSError as e:
            e.filename = self._file.name  # a failed write does not know its file
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
