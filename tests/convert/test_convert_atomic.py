"""The output appears complete or not at all, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sardine_gguf.convert import atomic, convert, write_base
from sardine_gguf.convert.cli import main
from sardine_gguf.errors import FormatError


def arguments(base, srde, out, *more):
    return ["--base", str(base), "--srde", str(srde), "-o", str(out), "-q", *more]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "o.gguf"


def run(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("limit", [0, 1, 5000, 100_000])
def test_file_size_limit(base, srde, out, limit):
    code = """
        import resource, signal, sys
        from sardine_gguf.convert.cli import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
        sys.exit(main(sys.argv[2:]))
    """
    out.write_bytes(b"before")
    process = run(code, limit, *arguments(base, srde, out, "--force"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert err.startswith("convert-sardine: error: ")
    assert len(err.splitlines()) == 1
    assert names(out.parent) == ["o.gguf"]
    assert out.read_bytes() == b"before"


CALLS = ["write", "fsync", "replace", "open", "close"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("before", [None, b"before"])
def test_each_failing_call(base, srde, out, monkeypatch, capsys, call, before):
    """The Nth write, fsync, ... fails, for every N until the conversion succeeds."""
    holder = Path if call == "replace" else os
    real = getattr(holder, call)
    for nth in range(10_000):
        if before is None:
            out.unlink(missing_ok=True)
        else:
            out.write_bytes(before)
        left = nth

        def failing(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == -1:
                if call == "close":
                    real(*args)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(holder, call, failing)
            code = main(arguments(base, srde, out, "--force"))
        if left >= 0:
            assert code == 0
            break
        assert code in (0, 4)
        text = capsys.readouterr().err
        assert (code == 0) or "No space left" in text
        assert [n for n in names(out.parent) if n != "o.gguf"] == []
        after = out.read_bytes() if out.exists() else None
        assert after == before or (after is not None and after[:4] == b"GGUF")
    assert 1 <= nth < 10_000


def test_interrupt_in_any_write(base, srde, out, monkeypatch, capsys):
    real = os.write
    for nth in (0, 1, 5, 40):
        left = nth

        def interrupting(*args):
            nonlocal left
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", interrupting)
            assert main(arguments(base, srde, out)) == 130
        assert names(out.parent) == []
        assert capsys.readouterr().err == "convert-sardine: error: interrupted\n"


SLOW = """
    import sys, time
    from sardine_gguf.convert import writer
    from sardine_gguf.convert.cli import main
    real = writer.stream
    def slow(*args):
        for piece in real(*args):
            time.sleep(0.1)
            yield piece
    writer.stream = slow
    sys.exit(main(sys.argv[1:]))
"""


def wait_for_temp(out, process):
    for _ in range(600):
        if any(n.endswith(".tmp") for n in names(out.parent)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no temporary file")


def test_too_little_room_is_noticed_at_once(base, srde, out, monkeypatch, capsys):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(atomic.AtomicFile, "write", None)
    assert main(arguments(base, srde, out)) == 4
    assert "1000 are free" in capsys.readouterr().err
    assert names(out.parent) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_signals(base, srde, out, number, code):
    process = run(SLOW, *arguments(base, srde, out))
    wait_for_temp(out, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert len(err.splitlines()) == 1
    assert names(out.parent) == []


def test_killed_run_is_swept_and_a_live_one_is_not(base, srde, out):
    out.write_bytes(b"before")
    dead = run(SLOW, *arguments(base, srde, out, "--force"))
    wait_for_temp(out, dead)
    dead.kill()
    dead.communicate()
    assert out.read_bytes() == b"before"
    assert len(names(out.parent)) == 2
    live = run(SLOW, *arguments(base, srde, out, "--force"))
    for _ in range(600):
        others = set(names(out.parent)) - {"o.gguf"}
        if len(others) == 1 and live.poll() is None and _locked(out.parent / next(iter(others))):
            break
        time.sleep(0.05)
    try:
        (mine,) = others  # the dead run's file is gone, the live run's is there
        assert main(arguments(base, srde, out, "--force")) == 0
        assert set(names(out.parent)) == {"o.gguf", mine}
        assert out.read_bytes()[:4] == b"GGUF"
    finally:
        live.terminate()
        live.communicate()
    assert names(out.parent) == ["o.gguf"]


def _locked(path):
    import fcntl

    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def test_kill_at_random_times(base, srde, out):
    """Twenty children killed within their run: the destination is the old or the whole file."""
    code = """
        import hashlib, os, random, signal, sys, time
        from pathlib import Path
        from sardine_gguf.convert.cli import main
        args, out = sys.argv[1:], Path(sys.argv[6])
        start = time.monotonic()
        assert main(args) == 0
        took = time.monotonic() - start
        whole = out.read_bytes()
        random.seed(1)
        killed = 0
        for i in range(20):
            out.write_bytes(b"old")
            child = os.fork()
            if child == 0:
                os._exit(main([*args, "--force"]))
            time.sleep(random.uniform(0, 1.2 * took))
            os.kill(child, signal.SIGKILL)
            killed += os.waitpid(child, 0)[1] == signal.SIGKILL
            assert out.read_bytes() in (b"old", whole), i
            assert len(os.listdir(out.parent)) <= 2, os.listdir(out.parent)
        assert main([*args, "--force"]) == 0
        assert os.listdir(out.parent) == [out.name]
        assert out.read_bytes() == whole
        print(killed)
    """
    args = ["--base", base, "--srde", srde, "-o", out, "-q", "--threads", "1"]
    process = run(code, "--base", base, "--srde", srde, "-o", out, *args[6:])
    stdout, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(stdout) >= 3


def test_existing_output_needs_force(base, srde, out, capsys):
    out.write_bytes(b"mine")
    assert main(arguments(base, srde, out)) == 3
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(arguments(base, srde, out, "--force")) == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_output_that_appears_meanwhile(base, srde, out, monkeypatch, capsys):
    real = atomic.AtomicFile.commit

    def late(self, verify, force):
        out.write_bytes(b"theirs")
        real(self, verify, force)

    monkeypatch.setattr(atomic.AtomicFile, "commit", late)
    assert main(arguments(base, srde, out)) == 3
    assert out.read_bytes() == b"theirs"
    assert names(out.parent) == ["o.gguf"]


@pytest.mark.parametrize("links", [True, False])
def test_output_that_appears_at_the_last_moment(base, srde, out, monkeypatch, capsys, links):
    """Between the last look and the move: where links can be made there is no such moment."""
    real, look = os.link, os.path.lexists

    def link(*args, **kwargs):
        if not links:
            raise OSError(errno.EOPNOTSUPP, "no links here")
        out.write_bytes(b"theirs")
        return real(*args, **kwargs)

    def lexists(path):
        if not links and path == out and any(n.endswith(".tmp") for n in names(out.parent)):
            out.write_bytes(b"theirs")
        return look(path)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os.path, "lexists", lexists)
    assert main(arguments(base, srde, out)) == 3
    assert "created by another program meanwhile" in capsys.readouterr().err
    assert out.read_bytes() == b"theirs"
    assert names(out.parent) == ["o.gguf"]


def test_without_links_and_names_that_are_not_utf8(base, srde, out, monkeypatch):
    odd = out.parent / os.fsdecode(b"o\xff.gguf")
    assert main(arguments(base, srde, odd)) == 0

    def link(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", link)
    assert main(["--base", os.fspath(odd), "--base-only", "-o", "x", "--dry-run"]) == 3
    plain = out.parent / os.fsdecode(b"b\xff.gguf")
    write_base(base, plain)
    assert main(arguments(plain, srde, out)) == 0
    assert names(out.parent) == sorted([odd.name, plain.name, "o.gguf"])


def test_output_that_is_an_input(base, srde, tmp_path, capsys):
    folder, link = tmp_path / "link", tmp_path / "soft"
    folder.symlink_to(base)
    link.symlink_to(srde)
    os.link(srde, tmp_path / "hard")
    write_base(base, tmp_path / "base.gguf")
    before = srde.read_bytes()
    for out in (srde, link, tmp_path / "hard", folder / "model.safetensors",
                base / "config.json", base / "tokenizer.json"):  # fmt: skip
        assert main(arguments(base, srde, out, "--force")) == 3
        assert "is the input" in capsys.readouterr().err
    assert main(arguments(tmp_path / "base.gguf", srde, tmp_path / "base.gguf", "--force")) == 3
    assert srde.read_bytes() == before


@pytest.mark.parametrize("force", [True, False])
def test_output_that_is_no_file(base, srde, tmp_path, force, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/full"), Path("/")):
        assert main(arguments(base, srde, out, *["--force"] * force)) == 3
    assert main(arguments(base, srde, tmp_path / "none" / "o.gguf")) == 4
    assert main(arguments(base, srde, srde / "o.gguf")) == 4


def test_dangling_link_is_replaced_only_with_force(base, srde, tmp_path, capsys):
    out = tmp_path / "o.gguf"
    out.symlink_to(tmp_path / "nowhere")
    assert main(arguments(base, srde, out)) == 3
    assert main(arguments(base, srde, out, "--force")) == 0
    assert not out.is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_refused_before_the_inputs_are_read(tmp_path, base, srde, monkeypatch, out):
    out.write_bytes(b"x")
    monkeypatch.setattr("sardine_gguf.convert.conversion.read_folder", None)
    with pytest.raises(FormatError, match="--force"):
        convert(base, srde, out)


def test_long_and_odd_names(base, srde, tmp_path):
    for name in ("a" * 250 + ".gguf", "-o.gguf", "ü [x] *.gguf", "no suffix"):
        assert main(arguments(base, srde, f"{tmp_path}/{name}")) == 0
        assert (tmp_path / name).exists()


def test_permissions_follow_the_umask(base, srde, out):
    before = os.umask(0o027)
    try:
        convert(base, srde, out)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o640


def test_written_file_is_read_back(base, srde, out, monkeypatch, capsys):
    """A byte that goes wrong in the header on the way to the disk is noticed."""
    real = os.write
    done = []

    def damaging(fd, data):
        if not done:
            done.append(1)
            data = bytes(data).replace(b"sardine.layers", b"sardine.Layers")
        return real(fd, data)

    monkeypatch.setattr(os, "write", damaging)
    assert main(arguments(base, srde, out)) == 4
    assert "read back" in capsys.readouterr().err
    assert names(out.parent) == []
