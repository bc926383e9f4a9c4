"""Takes the pictures of real sessions: tmux runs them, pyte reads what it captured, Pillow draws.

python docs/pictures/make_pictures.py, with tmux and the extra "test", writes docs/images/*.png.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pyte
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cli"))

from screens import Tmux  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE, MARGIN, BAR = 28, 36, 64
BACKGROUND, FOREGROUND, FAINT = "#16181d", "#d8dce4", 0.58
COLOURS = {
    "black": "#3b4048", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d8dce4",
}  # fmt: skip


def font(bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono, which matplotlib brings."""
    name = "DejaVuSansMono-Bold.ttf" if bold else "DejaVuSansMono.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, SIZE)


class Screen(pyte.Screen):
    """A screen that knows faint text, which pyte leaves out: it is kept as italics."""

    def select_graphic_rendition(self, *attrs: int, **kwargs: object) -> None:
        """SGR 2 becomes 3, and 22 ends both."""
        mapped = [3 if a == 2 else a for a in attrs]
        if 22 in mapped:
            mapped.insert(mapped.index(22) + 1, 23)
        super().select_graphic_rendition(*mapped, **kwargs)


def colour(name: str, default: str) -> str:
    """A colour of pyte as Pillow names it."""
    if name == "default":
        return default
    name = name.removeprefix("bright")
    return COLOURS.get(name, f"#{name}" if len(name) == 6 else default)


def faded(value: str) -> str:
    """A colour nearer to the background."""
    parts = [
        round(FAINT * int(value[i : i + 2], 16) + (1 - FAINT) * int(BACKGROUND[i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{p:02x}" for p in parts)


def draw(captured: str, columns: int, title: str, path: Path) -> None:
    """Draws a screen as `tmux capture-pane -e` gives it."""
    lines = captured.rstrip("\n").split("\n")
    screen = Screen(columns, len(lines))
    pyte.Stream(screen).feed("\r\n".join(lines))
    plain, strong = font(False), font(True)
    width = round(plain.getlength("m" * 100) / 100 * 64) / 64
    height = round(SIZE * 1.32)
    size = (
        round(columns * width) + 2 * MARGIN,
        len(lines) * height + BAR + 2 * MARGIN - (height - SIZE),
    )
    image = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, size[0], BAR), fill="#22252c")
    for i, dot in enumerate(("#e06c75", "#e5c07b", "#98c379")):
        pen.ellipse((MARGIN + 40 * i, BAR // 2 - 11, MARGIN + 40 * i + 22, BAR // 2 + 11), fill=dot)
    pen.text((size[0] / 2, BAR / 2), title, font=plain, fill="#8b919c", anchor="mm")
    for y, _ in enumerate(lines):
        for x in range(columns):
            cell = screen.buffer[y][x]
            front, back = colour(cell.fg, FOREGROUND), colour(cell.bg, BACKGROUND)
            if cell.reverse:
                front, back = back, front
            at = (MARGIN + x * width, BAR + MARGIN + y * height)
            if back != BACKGROUND:
                box = (*at, at[0] + width, at[1] + height)
                pen.rectangle(box, fill=back)
            if cell.data.strip():
                face = strong if cell.bold else plain
                pen.text(at, cell.data, font=face, fill=faded(front) if cell.italics else front)
            if cell.underscore:
                base = at[1] + SIZE + 4
                pen.line((at[0], base, at[0] + width, base), fill=front, width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


PROMPT = "$ "


class Shell(Tmux):
    """A shell with a short prompt, in a folder of its own."""

    def run(self, line: str) -> None:
        """Types a command and waits for the shell's next prompt."""
        self.type(line)
        self.wait(lambda: self.cursor() == (PROMPT.strip(), len(PROMPT)), "the shell's prompt")

    def type(self, line: str) -> None:
        """Types a line and Enter."""
        self.send(line)
        end = line.rstrip()[-30:]
        self.wait(lambda: self._joined().endswith(end), "the echo")
        self.key("Enter")
        self.wait(lambda: not self._joined().endswith(end), "its start")

    def _joined(self) -> str:
        return "".join(self.lines()).rstrip()

    def cursor(self) -> tuple[str, int]:
        line, column = super().cursor()
        return line.rstrip(), column


def first_minute(t: Shell) -> None:
    """What is said without a model, and about a wrong one."""
    home = Path(t.env["HOME"])
    (home / "sardine-14b-q4_k_m.gguf").write_bytes(b"GGUF")
    (home / "page.gguf").write_text("<!DOCTYPE html><html>")
    (home / "Ministral-3-14B").mkdir()
    (home / "Ministral-3-14B" / "model.safetensors").touch()
    t.run("sardine-cli")
    t.run("sardine-cli -m sardine-14B.gguf")
    t.run("sardine-cli -m page.gguf")
    t.run("sardine-cli -m Ministral-3-14B")


def chat(t: Shell) -> None:
    """A model loads, answers, answers again, and tells how fast."""
    t.type("sardine-cli --example")
    t.say("What is 15% of 80?")
    t.say("And 25%?")
    t.say("/stats")
    t.say("What is the chemical symbol for gold?")


def commands(t: Shell) -> None:
    """The list of commands and keys, and completion."""
    t.type("sardine-cli --example")
    t.say("/help")
    t.send("/s")
    t.key("Tab")
    t.wait_for("/stats   ")


def pipes(t: Shell) -> None:
    """The answer alone on standard output."""
    t.run("echo 'What is 15% of 80?' | sardine-cli --example > answer.txt; cat answer.txt")
    t.run("sardine-cli --example -p 'What is 15% of 60?' --no-show-timings")
    t.run("sardine-cli -m none.gguf -p hi; echo exit code $?")


def routing(t: Shell) -> None:
    """Answers in the colours of the experts, and what forcing one does."""
    t.type("sardine-cli --example --show-routing --no-show-timings")
    t.say("Write a Python function that adds 7 to a number.")
    t.say("Why is the sky blue?")
    t.say("/experts math=1")
    t.say("/clear")
    t.say("Why is the sky blue?")
    t.say("/experts reset")
    t.say("What is the chemical symbol for gold?")
    t.say("/experts")


SESSIONS: dict[str, tuple[Callable[[Shell], None], int, int]] = {
    "first-minute": (first_minute, 13, 124),
    "chat": (chat, 23, 116),
    "commands": (commands, 45, 104),
    "pipes": (pipes, 9, 100),
    "routing-chat": (routing, 36, 104),
}


def picture(name: str) -> Path:
    """Runs one session and draws its last screen."""
    play, rows, columns = SESSIONS[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        env = {
            "HOME": home,
            "XDG_STATE_HOME": f"{home}/.state",
            "XDG_CACHE_HOME": f"{home}/.cache",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PS1": PROMPT,
        }
        t = Shell(["sh", "-c", f"cd {home}; exec bash --norc --noprofile"], env, rows, columns)
        try:
            t.run("sardine-cli --example -p hello -n 1 2>/dev/null")  # converts the example
            t.type("clear")
            t.wait(lambda: t.text() == PROMPT.strip(), "an empty screen")
            play(t)
            draw(t.colours(), columns, "sardine-cli", IMAGES / f"{name}.png")
        finally:
            t.close()
    return IMAGES / f"{name}.png"


def main() -> None:
    """Takes all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SESSIONS, []], help="default: all")
    for name in parser.parse_args().names or SESSIONS:
        print(picture(name))


if __name__ == "__main__":
    main()
