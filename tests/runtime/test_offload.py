"""Layers on a GPU that the CPU plays: everything but CUDA's own launches runs as it would on one.

The CPU's graphs are the reference. With f32 keys and values both differ in the order of sums alone, in single
tokens and in batches. Attention over f32 is f32 in both.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel, make_model, nmse, random_tokens, text_of
from sardine_gguf import DeviceError, ForkError, InsufficientMemory, Sardine, _native

GIB = 1 << 30
MODES = ("sparse", "gain", "off")
MAX_NMSE = 1e-9
MAX_NMSE_QUANTIZED = 1e-4
TOKENS = random_tokens(150, seed=3)


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU with a gibibyte."""
    _native.emulate_gpu(GIB)
    yield
    _native.emulate_gpu(0)


def logits(model: TinyModel, mode: str, **options: Any) -> tuple[np.ndarray, Any]:
    """Of TOKENS, and the routes unless the mode has none."""
    with model.open(delta_mode=mode, **options) as m:
        out = m.eval(TOKENS)
        return out, None if mode == "off" else m.routing()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_gpu_layers", [1, 2, 3, "all"])
@pytest.mark.parametrize("n_batch", [1, 7, 64, 150])
@pytest.mark.usefixtures("gpu")
def test_same_logits(tiny: TinyModel, mode: str, n_gpu_layers: int, n_batch: int) -> None:
    """Whole or in part, in single tokens or batches; and the same experts."""
    expected, expected_routes = logits(tiny, mode)
    found, routes = logits(tiny, mode, n_gpu_layers=n_gpu_layers, n_batch=n_batch)
    assert nmse(found, expected) <= MAX_NMSE
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    if expected_routes:
        np.testing.assert_array_equal(routes[0], expected_routes[0])
        np.testing.assert_allclose(routes[1], expected_routes[1], rtol=0, atol=1e-5)


CASES: dict[str, dict[str, Any]] = {
    "some_layers": {"base": {"layers": 5}, "srde": {"layers": [1, 3], "density": 0.05}},
    "blocks": {"base": {"inner": 97}, "out": {"block_columns": 33}},
    "most_experts": {
        "top_k": 4,
        "base": {"layers": 1},
        "srde": {"n_experts": 256, "density": 0.02},
    },
    "many_experts": {"top_k": 5, "srde": {"n_experts": 40, "density": 0.05}},
    "tied": {"base": {"tied": True}},
    "q8_0": {"out": {"outtype": "q8_0", "delta_type": "q8_0"}, "base": {"inner": 128}},
    "f16": {"out": {"outtype": "f16", "delta_type": "f16"}},
    "no_positions": {"srde": {"positions": 0}},
}


# The CPU's portable kernels keep activations in f32, as the GPU's do. Faster ones round them to bf16 in
# prompts, which the 8 bits of quantized products amplify.
_COMPARE = """
import json, sys
import numpy as np
from sardine_gguf import Sardine, _native

_native.emulate_gpu(1 << 30)
tokens, found = json.loads(sys.argv[2]), []
for mode in ("sparse", "gain", "off"):
    for n_batch in (6, 150):
        ys, routes = [], []
        for n_gpu_layers in (0, "all"):
            with Sardine(sys.argv[1], kv_type="f32", n_threads=1, delta_mode=mode, n_batch=n_batch,
                         n_gpu_layers=n_gpu_layers) as m:
                ys.append(m.eval(tokens).astype(float))
                routes.append(np.zeros(0) if mode == "off" else m.routing()[0])
        nmse = ((ys[1] - ys[0]) ** 2).sum() / (ys[0] ** 2).sum()
        found.append((mode, n_batch, nmse, int((routes[0] != routes[1]).sum())))
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", CASES)
def test_kinds_of_files(workshop: Path, name: str) -> None:
    """Layers without experts between others, column blocks, value types, a tied output."""
    options = {"srde": {"density": 0.05}, **CASES[name]}
    model = make_model(workshop / f"offload-{name}", **options)
    done = subprocess.run(
        [sys.executable, "-c", _COMPARE, str(model.gguf), json.dumps(TOKENS)],
        env={**os.environ, "SARDINE_CPU": "portable"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # Quantized products round activations to 8 bits, and a last bit of the deltas may tip one of them.
    bound = MAX_NMSE_QUANTIZED if name in ("q8_0", "f16") else MAX_NMSE
    found = json.loads(done.stdout)
    assert len(found) == 6
    for mode, n_batch, difference, other_routes in found:
        assert difference <= bound, (mode, n_batch)
        assert other_routes == 0, (mode, n_batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("gpu")
def test_shared_part(small_shared: TinyModel, mode: str) -> None:
    """Every mode adds it, to few tokens and to many."""
    tokens = [t % 270 for t in TOKENS]
    with small_shared.open(delta_mode=mode) as m:
        expected = m.eval(tokens)
    for n_batch in (5, 150):
        with small_shared.open(delta_mode=mode, n_batch=n_batch, n_gpu_layers="all") as m:
            assert nmse(m.eval(tokens), expected) <= 1e-4


@pytest.mark.usefixtures("gpu")
def test_text(tiny: TinyModel) -> None:
    """Greedy tokens, as on the CPU, with the default f16 keys and values."""
    prompt = random_tokens(20)
    texts = []
    for n in (0, 2, "all"):
        with Sardine(tiny.gguf, n_gpu_layers=n) as m:
            texts.append(text_of(m, prompt, max_tokens=20, temperature=0))
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.usefixtures("gpu")
def test_experts_steered(tiny: TinyModel) -> None:
    """Forced, muted and biased experts, and the router's logits."""
    names = None
    more = dict.fromkeys(range(5), 0.2)  # than its top_k
    fewer = dict.fromkeys(range(3), "mute")
    for setting, n_batch in itertools.product(
        ({0: 1.0}, {0: 0.75, 3: 0.25}, more, fewer, {1: "mute"}, {2: "+3"}, {}), (1, 512)
    ):
        found = []
        for n in (0, "all"):
            with tiny.open(n_gpu_layers=n, n_batch=n_batch, experts=setting or None) as m:
                names = names or m.expert_names
                m.session.keep_router_logits(True)
                found.append((m.eval(TOKENS[:40]), m.routing(), m.session.router_logits()))
        (a, ra, la), (b, rb, lb) = found
        assert nmse(b, a) <= MAX_NMSE
        np.testing.assert_array_equal(ra[0], rb[0])
        np.testing.assert_allclose(la, lb, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("gpu")
def test_contexts_share_the_weights(tiny: TinyModel) -> None:
    """A second context, of another mode, on the same device weights; states go from one to the other."""
    with (
        tiny.open(n_gpu_layers=2) as m,
        m.new_context(delta_mode="off") as other,
        tiny.open() as cpu,
    ):
        assert m.model.n_gpu_layers == other.model.n_gpu_layers == m.n_gpu_layers == 2
        assert m.model.gpu == "emulated"
        m.eval(TOKENS[:50])
        off = other.eval(TOKENS[:50])
        with tiny.open(delta_mode="off") as expected:
            assert nmse(off, expected.eval(TOKENS[:50])) <= MAX_NMSE
        cpu.load_state(m.save_state())
        assert nmse(cpu.eval(TOKENS[50:60]), m.eval(TOKENS[50:60])) <= MAX_NMSE
        m.load_state(cpu.save_state())
        assert m.n_tokens == 60


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("gpu")
def test_few_tokens_at_once(tiny: TinyModel, small_shared: TinyModel, mode: str) -> None:
    """Batches around the number from which on tokens are grouped by expert, one after another."""
    for model, vocab, bound in ((tiny, 320, MAX_NMSE), (small_shared, 270, MAX_NMSE_QUANTIZED)):
        with (
            model.open(delta_mode=mode, n_gpu_layers="all") as m,
            model.open(delta_mode=mode) as cpu,
        ):
            for n in (2, 3, 7, 8, 9, 10, 1, 64, 65, 8):
                tokens = [t % vocab for t in random_tokens(n, seed=n)]
                assert nmse(m.eval(tokens), cpu.eval(tokens)) <= bound, n


@pytest.mark.usefixtures("gpu")
def test_a_step_that_cannot_be_recorded(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error every time, never a graph that was not recorded; batches go on."""
    monkeypatch.setenv("SARDINE_CUDA_GRAPH", "1")
    with tiny.open(n_gpu_layers="all") as m:
        m.eval(TOKENS[:10])
        for t in TOKENS[10:12]:  # the steps before it is recorded
            m.eval([t])
        for t in (TOKENS[12], TOKENS[12]):
            with pytest.raises(DeviceError, match="the emulated device captures no graphs"):
                m.eval([t])
            assert m.n_tokens == 12
        batch = m.eval(TOKENS[12:22])
    with tiny.open() as cpu:
        assert nmse(batch, cpu.eval(TOKENS[:22])[12:]) <= MAX_NMSE


@pytest.mark.usefixtures("gpu")
def test_long_context(tiny: TinyModel) -> None:
    """Beyond a step of 256 positions, token by token: programs are built anew, and only then."""
    tokens = random_tokens(300, seed=9)
    with tiny.open(n_gpu_layers="all", n_ctx=512) as m, tiny.open(n_ctx=512) as cpu:
        expected = cpu.eval(tokens)
        m.eval(tokens[:250])
        before = m.session.counts["graphs"]
        rows = [m.eval([t])[0] for t in tokens[250:]]
        assert nmse(np.array(rows), expected[250:]) <= MAX_NMSE
        assert (
            m.session.counts["graphs"] - before == 3
        )  # ours up to 256, ours beyond it, the embedding's


def test_auto_fits(tiny: TinyModel) -> None:
    """More free memory, more layers, down to none and up to all; what is taken is below what was free."""
    found = []
    try:
        for mib in (1, 320, 322, 323, 324, 330, 400, 1024):
            _native.emulate_gpu(mib << 20)
            with tiny.open(n_gpu_layers="auto", n_ctx=256, n_batch=64) as m:
                found.append(m.n_gpu_layers)
                assert m.model.gpu_bytes < mib << 20
    finally:
        _native.emulate_gpu(0)
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == 4


def test_no_room(tiny: TinyModel) -> None:
    """A context that the GPU does not hold is refused with its bytes; n_ctx auto takes what fits."""
    try:
        _native.emulate_gpu(GIB)
        with tiny.open(n_gpu_layers="all") as m:
            _native.emulate_gpu(1 << 16)
            with pytest.raises(InsufficientMemory, match=r"GPU's memory, but 65536 bytes are free"):
                m.new_context(n_ctx=4096)
            _native.emulate_gpu((128 << 20) + (8 << 20))
            with m.new_context(n_ctx="auto", n_batch=32) as short:
                n = int(short.n_ctx)
            _native.emulate_gpu((128 << 20) + (16 << 20))
            with m.new_context(n_ctx="auto", n_batch=32) as longer:
                assert int(longer.n_ctx) >= n > 0
    finally:
        _native.emulate_gpu(0)


@pytest.mark.skipif(_native.find_gpus()["has_kernels"], reason="this build has CUDA kernels")
@pytest.mark.parametrize("n", [1, -1, "all", "auto"])
def test_no_gpu(tiny: TinyModel, n: Any) -> None:
    """Asked for without one, even by "auto": an error that says what to install, and nothing falls back."""
    with pytest.raises(DeviceError, match=r"CMAKE_ARGS=-DGGML_CUDA=on.*n_gpu_layers=0"):
        Sardine(tiny.gguf, n_gpu_layers=n)


@pytest.mark.usefixtures("gpu")
def test_cancelled(tiny: TinyModel) -> None:
    """A stop between graphs leaves the context as it was."""
    with tiny.open(n_gpu_layers="all") as m:
        m.eval(TOKENS[:10])
        before = m.session.n_cancels
        m.cancel()
        with pytest.raises(Exception, match="cancelled"):
            m.session.decode(TOKENS[10:20], since=before)
        assert m.n_tokens == 10
        m.eval(TOKENS[10:20])


def test_without_flash_attention(tiny: TinyModel) -> None:
    """ggml-cuda has it for some sizes of heads; products and a softmax do the others."""
    expected, _ = logits(tiny, "sparse")
    try:
        _native.emulate_gpu(GIB, flash=False)
        for n_batch in (1, 150):
            found, _ = logits(tiny, "sparse", n_gpu_layers="all", n_batch=n_batch)
            assert nmse(found, expected) <= MAX_NMSE
        with Sardine(tiny.gguf, n_gpu_layers="all") as m:
            assert 0 < nmse(m.eval(TOKENS), expected) <= 1e-5  # f16 keys and values
    finally:
        _native.emulate_gpu(0)


@pytest.mark.parametrize("n_batch", [1, 6, 150])
@pytest.mark.parametrize("rounds", [False, True])
def test_flash_attention(wide: TinyModel, n_batch: int, rounds: bool) -> None:
    """With sums in f32, or as ggml-cuda's tensor cores have them: f16 factors, sums of f16. Single tokens get
    its kernel with sums in f32."""
    tokens = random_tokens(150)
    with wide.open(kv_type="f16") as m:
        expected = m.eval(tokens)
    try:
        _native.emulate_gpu(GIB, rounds=rounds)
        with wide.open(kv_type="f16", n_gpu_layers="all", n_batch=n_batch) as m:
            found = nmse(m.eval(tokens), expected)
    finally:
        _native.emulate_gpu(0)
    in_half = rounds and n_batch > 1
    # Keys and values that are rounded to f16 the other way; or 11 bits instead of 24 in each of ten steps of
    # a sum, which the layers pass on.
    f16_variance = 2**-22 / 3
    assert found <= (MAX_NMSE_QUANTIZED if in_half else f16_variance)
    assert not in_half or found > f16_variance


@pytest.mark.usefixtures("gpu")
def test_keys_and_values_q8_0(wide: TinyModel, narrow: TinyModel) -> None:
    """Quantized on the GPU, close to the CPU's; refused where ggml-cuda would end the process over it."""
    tokens = random_tokens(100)
    with wide.open(kv_type="q8_0", n_gpu_layers="all") as m, wide.open(kv_type="q8_0") as cpu:
        assert nmse(m.eval(tokens), cpu.eval(tokens)) <= 1e-4
    with pytest.raises(DeviceError, match="heads of 32 there, which keys and values in q8_0 need"):
        narrow.open(kv_type="q8_0", n_gpu_layers="all")
    with narrow.open(kv_type="q8_0") as m:
        m.eval(tokens)


def test_weights_that_do_not_fit(tiny: TinyModel) -> None:
    """Refused before anything is copied, with the bytes needed and free."""
    try:
        _native.emulate_gpu(50_000)
        with pytest.raises(
            InsufficientMemory, match=r"n_gpu_layers 4 needs \d+ bytes .* 50000 bytes are"
        ):
            tiny.open(n_gpu_layers="all")
    finally:
        _native.emulate_gpu(0)


def test_settings_that_found_no_memory(tiny: TinyModel) -> None:
    """The settings before go on acting on the GPU's layers, once there is memory again."""
    first, second = {0: "mute", 1: "+2"}, {0: "+3", 3: "-2"}
    try:
        _native.emulate_gpu(GIB)
        with tiny.open(n_gpu_layers="all") as m:
            m.experts = first
            expected = m.eval(TOKENS)
            m.reset()
            _native.emulate_gpu(1)
            with pytest.raises(InsufficientMemory, match="experts' settings"):
                m.experts = second
            _native.emulate_gpu(GIB)
            np.testing.assert_array_equal(m.eval(TOKENS), expected)
            m.experts = None
            assert nmse(m.eval(TOKENS), expected) > 1e-6
    finally:
        _native.emulate_gpu(0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 40])
@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.usefixtures("gpu")
def test_a_failing_launch(tiny: TinyModel, late: bool, n_tokens: int, after: int) -> None:
    """An exception that names the device, at once or when the error shows; the context is as before."""
    with tiny.open(n_gpu_layers="all") as m, tiny.open(n_gpu_layers="all") as fresh:
        for one in (m, fresh):
            one.eval(TOKENS[:10])
        _native.fail_emulated_launch(after, late)
        with pytest.raises(DeviceError, match="emulated: the kernels: an emulated failure"):
            m.eval(TOKENS[10 : 10 + n_tokens])
        assert m.n_tokens == 10
        for part in (TOKENS[10:11], TOKENS[11:60]):
            np.testing.assert_array_equal(m.eval(part), fresh.eval(part))


@pytest.mark.usefixtures("gpu")
def test_host_waits(workshop: Path, tiny: TinyModel) -> None:
    """The host waits once a token, however many layers: none by layer; batches look how far they are after
    every step, which is what lets a stop take effect."""

    def counts(m: Sardine, tokens: list[int]) -> dict[str, int]:
        before = _native.emulated_counts()
        m.eval(tokens)
        return {k: v - before[k] for k, v in _native.emulated_counts().items()}

    deep = make_model(workshop / "offload-deep", base={"layers": 6}, srde={"density": 0.05})
    for model, layers in ((tiny, 3), (deep, 6)):
        with model.open(n_gpu_layers="all") as m:
            m.eval(TOKENS[:20])
            one, many = counts(m, TOKENS[20:21]), counts(m, TOKENS[21:60])
        # By layer: the router with gate and up, and down; each is a part of ours between two of ggml's.
        assert one == {"launches": 3 * layers, "orders": 4 * layers, "waits": 1, "paces": 0}
        assert many["waits"] == 1
        assert many["paces"] >= 3 * layers
        with model.open(n_gpu_layers="all", delta_mode="off") as m:
            m.eval(TOKENS[:20])
            assert counts(m, TOKENS[20:21]) == {"launches": 0, "orders": 0, "waits": 1, "paces": 0}
            assert counts(m, TOKENS[21:60])["paces"] >= layers


@pytest.mark.usefixtures("gpu")
def test_forked_child(tiny: TinyModel) -> None:
    """CUDA does not survive a fork: the child gets an error and can close what it has; the parent goes on."""
    with tiny.open(n_gpu_layers="all") as m, tiny.open() as cpu:
        m.eval(TOKENS[:10])
        cpu.eval(TOKENS[:10])
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                failed = 0
                for call in (lambda: m.eval(TOKENS[:1]), m.save_state):
                    try:
                        call()
                    except (DeviceError, ForkError) as e:
                        failed += "fork" in str(e)
                m.close()
                code = 0 if failed == 2 else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert nmse(m.eval(TOKENS[10:20]), cpu.eval(TOKENS[10:20])) <= MAX_NMSE


def test_libraries_of_kernels_that_do_not_fit(tmp_path: Path) -> None:
    """Missing, no library, somebody else's, another version, and one whose device does not open."""
    path = tmp_path / "libsardine_cuda.so"
    with pytest.raises(DeviceError, match=r"is missing.*CMAKE_ARGS"):
        _native.open_kernels(str(path))
    path.write_bytes(b"no library")
    with pytest.raises(
        DeviceError, match=r"cannot load the CUDA kernels.*build sardine_gguf again"
    ):
        _native.open_kernels(str(path))
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    version = "unsigned sardine_device_version(void) { return %d; }\n"
    device = """#include <string.h>
        void* sardine_open_device(void* backend, char* error, unsigned long size) {
            strncpy(error, "CUDA: cudaGetDeviceProperties: no driver", size);
            return 0;
        }"""
    for name, code, message in (
        ("other", "int nothing;", "is not this package's.*reinstall"),
        (
            "old",
            version % 2 + device,
            r"version 2 of the kernels, and version 3 is needed.*CMAKE_ARGS",
        ),
        (
            "dead",
            version % 3 + device,
            "GPU cannot be used: CUDA: cudaGetDeviceProperties: no driver",
        ),
    ):
        source, library = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(code)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        with pytest.raises(DeviceError, match=message):
            _native.open_kernels(str(library))
