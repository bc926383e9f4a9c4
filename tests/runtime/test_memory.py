"""What a context takes is known before it is allocated: n_ctx "auto", and requests that do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import TinyModel, make_model, random_tokens
from sardine_gguf import InsufficientMemory, Sardine, _native

MIB = 1 << 20


@pytest.fixture
def free() -> Iterator[Callable[[int], None]]:
    """Sets what the runtime believes to be free."""
    yield _native.pretend_available_memory
    _native.pretend_available_memory(0)


@pytest.fixture(scope="module")
def long(workshop: Path) -> TinyModel:
    """A model that takes 100,000 tokens (its config says so; nothing is trained)."""
    model = make_model(workshop / "long", base={"heads": 2, "head_dim": 32, "layers": 6})
    config = model.base / "config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps({**saved, "max_position_embeddings": 100_000}))
    path = model.converted("longer.gguf", outtype="f32", delta_type="f32")
    return TinyModel(model.base, model.srde, path, model.top_k)


def numbers(error: BaseException) -> tuple[int, int, int, int]:
    """Bytes needed in all, for the cache, to compute; and available."""
    found = re.search(
        r"needs (\d+) bytes \((\d+) for keys and values, (\d+) to compute\), but (\d+) bytes",
        str(error),
    )
    assert found, error
    total, cache, compute, available = map(int, found.groups())
    assert total == cache + compute
    return total, cache, compute, available


@pytest.mark.parametrize("mode", ["sparse", "off"])
@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_refused_with_both_numbers(
    wide: TinyModel, free: Callable[[int], None], mode: str, kv_type: str
) -> None:
    """One byte short of what it needs is refused, all of it is enough."""
    free(20_000)
    with pytest.raises(InsufficientMemory) as caught:
        wide.open(delta_mode=mode, kv_type=kv_type)
    _, cache, _, available = numbers(caught.value)
    row = {"f16": 128, "f32": 256, "q8_0": 68}[kv_type]  # 2 heads of 32
    assert (cache, available) == (2 * 3 * 256 * row, 20_000)
    free(cache)  # enough for the cache alone
    with pytest.raises(InsufficientMemory) as caught:
        wide.open(delta_mode=mode, kv_type=kv_type)
    total, _, compute, _ = numbers(caught.value)
    assert compute > 0
    free(total - 1)
    with pytest.raises(InsufficientMemory):
        wide.open(delta_mode=mode, kv_type=kv_type)
    free(total)
    with wide.open(delta_mode=mode, kv_type=kv_type) as m:
        assert cache < m.session.memory_bytes <= total
        m.session.decode(random_tokens(250))
        m.session.decode([8])
        assert m.session.memory_bytes <= total


def test_all_logits_are_counted_when_they_are_asked_for(
    workshop: Path, free: Callable[[int], None]
) -> None:
    """eval's rows of logits may be more than the context itself; the context survives the refusal."""
    base = {"hidden": 32, "inner": 32, "vocab": 2000, "tokenizer": False}
    model = make_model(workshop / "words", base=base, srde={"n_experts": 3})
    tokens = random_tokens(200)
    with model.open() as m:
        m.session.decode(tokens[:10])
        free(1000)
        with pytest.raises(InsufficientMemory, match=r"190 tokens need \d+ bytes more, but 1000"):
            m.eval(tokens[10:])
        assert m.n_tokens == 10
        m.session.decode(tokens[10:])
        free(0)
        found = m.session.last_logits()
    with model.open() as m:
        m.session.decode(tokens[:10])
        m.session.decode(tokens[10:])
        np.testing.assert_array_equal(m.session.last_logits(), found)


def test_auto_takes_the_models_own(wide: TinyModel) -> None:
    """With memory for all of it."""
    with wide.open(n_ctx="auto") as m:
        assert m.n_ctx == 256
        assert m.new_context(n_ctx=100).n_ctx == 100


def test_auto_grows_with_the_memory(long: TinyModel, free: Callable[[int], None]) -> None:
    """The longest that fits beside the weights and the margin: a step more would be refused."""
    size = long.gguf.stat().st_size
    seen = []
    for mib in (200, 250, 300, 10_000):
        free(mib * MIB)
        with Sardine(long.gguf, n_ctx="auto", n_threads=1) as m:
            seen.append(m.n_ctx)
            margin = max(128 * MIB, (mib * MIB - size) // 8)
            budget = mib * MIB - size - margin
            assert m.session.memory_bytes <= budget
        if seen[-1] == 100_000:
            continue
        assert seen[-1] % 256 == 0
        free(budget)
        Sardine(long.gguf, n_ctx=seen[-1], n_threads=1).close()
        with pytest.raises(InsufficientMemory):
            Sardine(long.gguf, n_ctx=seen[-1] + 256, n_threads=1)
    assert seen == sorted(seen)
    assert seen[0] < seen[1] < seen[-1] == 100_000


def test_auto_counts_the_type(long: TinyModel, free: Callable[[int], None]) -> None:
    """Smaller values, more tokens."""
    free(200 * MIB)
    found = {}
    for kind in ("f32", "f16", "q8_0"):
        with Sardine(long.gguf, n_ctx="auto", kv_type=kind, n_threads=1) as m:  # type: ignore[arg-type]
            found[kind] = m.n_ctx
    assert found["f32"] < found["f16"] < found["q8_0"]


def test_auto_without_room_for_one_step(long: TinyModel, free: Callable[[int], None]) -> None:
    """Refused with what the shortest would need."""
    free(long.gguf.stat().st_size + 100_000)
    with pytest.raises(InsufficientMemory) as caught:
        Sardine(long.gguf, n_ctx="auto")
    assert numbers(caught.value)[3] < 100_000


def test_none_is_as_documented(long: TinyModel) -> None:
    """The model's own, at most 8192."""
    with Sardine(long.gguf) as m:
        assert m.n_ctx == 8192


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n_ctx=st.integers(1, 100_000),
    n_batch=st.integers(1, 600),
    mode=st.sampled_from(["sparse", "gain", "off"]),
    kv_type=st.sampled_from(["f16", "f32", "q8_0"]),
    n_threads=st.integers(1, 4),
)
def test_the_need_is_a_bound(
    long: TinyModel,
    free: Callable[[int], None],
    n_ctx: int,
    n_batch: int,
    mode: str,
    kv_type: str,
    n_threads: int,
) -> None:
    """What is allocated never exceeds what was said, whatever the options."""
    options = {
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "delta_mode": mode,
        "kv_type": kv_type,
        "n_threads": n_threads,
    }
    free(1)
    with pytest.raises(InsufficientMemory) as caught:
        Sardine(long.gguf, **options)  # type: ignore[arg-type]
    cache = numbers(caught.value)[1]
    free(cache)
    with pytest.raises(InsufficientMemory) as caught:
        Sardine(long.gguf, **options)  # type: ignore[arg-type]
    total = numbers(caught.value)[0]
    free(total)
    with Sardine(long.gguf, **options) as m:  # type: ignore[arg-type]
        free(0)
        m.session.decode(random_tokens(min(n_ctx, 100)))
        assert m.session.memory_bytes <= total


def write_groups(folder: Path, files: dict[str, object]) -> Path:
    """A tree as it is mounted at /sys/fs/cgroup."""
    for name, value in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return folder


def second(
    path: str, limit: object, used: int, inactive: int = 0, active: int = 0
) -> dict[str, object]:
    """The files of a group of version 2."""
    stat = f"anon 7\nfile 9\ninactive_file {inactive}\nactive_file {active}"
    return {
        f"{path}/memory.max": limit,
        f"{path}/memory.current": used,
        f"{path}/memory.stat": stat,
    }


def first(
    path: str, limit: int, used: int, inactive: int = 0, active: int = 0
) -> dict[str, object]:
    """The files of a group of version 1, whose own counts leave out the groups below it."""
    stat = f"cache 9\ninactive_file 1\ntotal_inactive_file {inactive}\ntotal_active_file {active}"
    return {
        f"memory{path}/memory.limit_in_bytes": limit,
        f"memory{path}/memory.usage_in_bytes": used,
        f"memory{path}/memory.stat": stat,
    }


UNLIMITED_FIRST = 9223372036854771712  # how version 1 spells it
NONE = 2**64 - 1
OTHERS = "11:cpu,cpuacct:/a\n3:memorylike:/b\n"


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({}, "0::/", NONE),
        (second("", 1000, 400), "0::/", 600),
        (second("", 1000, 400, 150, 50), "0::/", 800),
        (second("", 1000, 400, 900, 50), "0::/", 1000),
        (second("", "max", 400), "0::/", NONE),
        (second("", 1000, 1200), "0::/", 0),
        (second("/a/b", 1000, 400), "0::/a/b", 600),
        (second("/a", 500, 400) | second("/a/b", 1000, 300), "0::/a/b", 100),
        (second("/a", "max", 400) | second("/a/b", 1000, 300), "0::/a/b", 700),
        (second("/a/b", 1000, 400), "0::/a", NONE),
        (second("/a", 1000, 400), "0::/../a", NONE),
        (second("", 1000, 100), "0::/docker/not/here", 900),
        (first("", 1000, 400), "9:memory:/", 600),
        (first("", 1000, 400, 150, 50), "9:memory:/docker/1", 800),
        (first("", UNLIMITED_FIRST, 400), "9:memory:/", UNLIMITED_FIRST - 400),
        (first("/a", 500, 400) | first("/a/b", 1000, 300), OTHERS + "9:hugetlb,memory:/a/b", 100),
        (first("/a", 500, 400), OTHERS + "4:blkio:/a", NONE),
        (first("/a", 500, 400) | second("/u", 300, 200), "0::/u\n9:memory:/a", 100),
        (second("", 1000, 400), "nonsense\n:\n\n", 600),
        ({"memory.max": "many", "memory.current": 3}, "0::/", NONE),
        ({"memory.max": "1000"}, "0::/", NONE),
    ],
)
def test_control_groups(
    tmp_path: Path, files: dict[str, object], groups: str, expected: int
) -> None:
    """Of both versions: the least that the process's group and those above leave; cached pages are free."""
    mount = write_groups(tmp_path / "cgroup", files)
    mount.mkdir(exist_ok=True)
    names = tmp_path / "self"
    names.write_text(groups + "\n")
    assert _native.cgroup_memory(str(mount), str(names)) == expected
    assert _native.cgroup_memory(str(mount), str(tmp_path / "missing")) >= expected
