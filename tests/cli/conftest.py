"""Model files and terminals for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_mutate import Gguf
from make_checkpoint import srde_checkpoint, tiny_base
from sardine_gguf.convert import convert, write_base
from screens import CLI, Emulated, Terminal, Tmux, tmux_is_missing

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-sardine"


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: its answers are noise, but real tokens; it rarely ends."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_base(folder / "base", hidden=32, inner=48, layers=2, seed=2)
    srde_checkpoint(folder / "srde_weights.pt", folder / "base")
    convert(folder / "base", folder / "srde_weights.pt", folder / "m.gguf", outtype="f32")
    return folder / "m.gguf"


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled example: it answers as it was taught."""
    path = tmp_path_factory.mktemp("example") / "tiny-sardine.gguf"
    convert(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", path, outtype="q8_0")
    return path


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template begins the thoughts, so that it thinks without having learned to."""
    path = tmp_path_factory.mktemp("thinker") / "m.gguf"
    write_base(EXAMPLE / "base", path, "q8_0", n_threads=1)
    g = Gguf.parse(path.read_bytes())
    template = (EXAMPLE / "base" / "chat_template.jinja").read_text() + "{{ '[THINK]' }}"
    g.set("tokenizer.chat_template", "str", template)
    path.write_bytes(g.build())
    return path


Start = Callable[..., Terminal]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Variables that keep a program's files in a folder of the test."""
    return {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


@pytest.fixture
def emulated(home: dict[str, str]) -> Iterator[Callable[..., Emulated]]:
    """Starts sardine-cli on an emulated terminal."""
    running: list[Emulated] = []

    def start(*args: object, env: dict[str, str] | None = None, **size: int) -> Emulated:
        running.append(Emulated([*CLI, *map(str, args)], {**home, **(env or {})}, **size))
        return running[-1]

    yield start
    for terminal in running:
        terminal.close()


@pytest.fixture(params=["pyte", "tmux"])
def terminal(request: pytest.FixtureRequest, home: dict[str, str]) -> Iterator[Start]:
    """Starts sardine-cli on a terminal: the emulated one, then a real one."""
    if request.param == "tmux" and tmux_is_missing():
        pytest.skip("tmux is not installed (apt install tmux); the emulated terminal ran the same")
    kind = Tmux if request.param == "tmux" else Emulated
    running: list[Terminal] = []

    def start(*args: object, env: dict[str, str] | None = None, **size: int) -> Terminal:
        running.append(kind([*CLI, *map(str, args)], {**home, **(env or {})}, **size))
        return running[-1]

    yield start
    for each in running:
        each.close()
