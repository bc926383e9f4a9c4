"""Damaged base keys, tensors and tokenizers: refused, or run without harm; libllama must never abort.

These go to a worker process, because the part under test is other people's code that ends the process when
it is surprised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from gguf_mutate import KINDS, Gguf
from load_worker import Worker
from models import TinyModel

N = 270
Change = Callable[[Gguf], None]
ANY = {"str": "x", "f32": 1.0, "f64": 1.0}
TOKENIZER = "tokenizer.ggml."


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for the module."""
    w = Worker()
    yield w
    w.close()


def outcome(worker: Worker, g: Gguf, path: Path) -> tuple[str, str]:
    """Writes and loads; fails if the process died or raised anything but FormatError."""
    path.unlink(missing_ok=True)
    path.write_bytes(g.build())
    kind, text = worker.ask(path=str(path))
    assert kind in ("ok", "FormatError"), f"{kind}: {text}"
    return kind, text


def fresh(small: TinyModel) -> Gguf:
    return Gguf.parse(small.gguf.read_bytes())


def keys_of(small: TinyModel) -> list[str]:
    return [e.key.decode() for e in fresh(small).entries]


OTHER_KEYS = [
    "split.count",
    "split.no",
    "split.tensors.count",
    "mistral3.expert_count",
    "mistral3.rope.scaling.attn_factor",
    "mistral3.rope.scale_linear",
    "mistral3.attention.sliding_window",
    "general.sampling.temp",
    "general.sampling.top_k",
    "general.sampling.top_p",
    "general.sampling.min_p",
    TOKENIZER + "scores",
    TOKENIZER + "add_space_prefix",
    TOKENIZER + "remove_extra_whitespaces",
    TOKENIZER + "precompiled_charsmap",
    TOKENIZER + "token_type_count",
    TOKENIZER + "eot_token_id",
    TOKENIZER + "eom_token_id",
    TOKENIZER + "fim_pre_token_id",
    TOKENIZER + "mask_token_id",
    TOKENIZER + "suppress_tokens",
    "tokenizer.chat_template.tool_use",
]


def test_every_key_of_every_type(small: TinyModel, worker: Worker, tmp_path: Path) -> None:
    """Each key as each type, as arrays, and gone: FormatError or a load, never a crash."""
    refused = 0
    keys = keys_of(small)
    for key in [*keys, *OTHER_KEYS]:
        for kind in KINDS:
            g = fresh(small)
            if kind == "arr":
                g.set_array(key, "u8", [1])
            else:
                g.set(key, kind, ANY.get(kind, 1))
            refused += outcome(worker, g, tmp_path / "a.gguf")[0] == "FormatError"
        for element in ("str", "u32", "f32", "i32"):
            g = fresh(small)
            g.set_array(key, element, [ANY.get(element, 1)])
            refused += outcome(worker, g, tmp_path / "a.gguf")[0] == "FormatError"
        g = fresh(small)
        g.drop(key)
        outcome(worker, g, tmp_path / "a.gguf")
    assert refused > 8 * len(keys)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1.0, 0.0, 1e38, 1e-45, 2.0**31, 1e300])
def test_strange_numbers(value: float, small: TinyModel, worker: Worker, tmp_path: Path) -> None:
    """Every float key with NaN, infinities, zero and extremes; sampling defaults among them."""
    found = [k for k in keys_of(small) if fresh(small).entry(k).kind == KINDS.index("f32")]
    assert len(found) > 6
    for key in [*found, *(k for k in OTHER_KEYS if "sampling" in k or "scal" in k)]:
        for kind in ("f32", "f64") if "sampling" in key else ("f32",):
            if kind == "f32" and abs(value) > 1e39 and abs(value) != INF:
                continue
            g = fresh(small)
            g.set(key, kind, value)
            result, field = outcome(worker, g, tmp_path / "a.gguf")
            if value != value and key.startswith("mistral3"):
                assert (result, field) == ("FormatError", key)


@pytest.mark.parametrize("value", [0, 1, 2, 3, 2**15, 2**16 + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_strange_counts(value: int, small: TinyModel, worker: Worker, tmp_path: Path) -> None:
    """Every u32 key with other numbers: shapes must disagree before anything is allocated for them."""
    for key in keys_of(small):
        if fresh(small).entry(key).kind == KINDS.index("u32"):
            g = fresh(small)
            g.set(key, "u32", value)
            outcome(worker, g, tmp_path / "a.gguf")


def weights() -> list[str]:
    return ["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"]


@pytest.mark.parametrize("name", weights())
def test_every_tensor_type(name: str, workshop: Path, worker: Worker, tmp_path: Path) -> None:
    """A weight of each type that gguf knows, of the right size: it computes or is refused."""
    from models import make_model

    folder = workshop / "wide"
    path = folder / "model.gguf"
    if not path.exists():
        base = {"hidden": 256, "inner": 256, "layers": 2, "heads": 2, "heads_kv": 1, "vocab": N}
        make_model(folder, base=base, srde={"n_experts": 2, "positions": 40})
    accepted = set()
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        g = Gguf.parse(path.read_bytes())
        t = g.tensor(name)
        t.type = int(kind)
        t.data = bytes(t.ne[0] * t.ne[1] // block * size)
        if outcome(worker, g, tmp_path / "a.gguf")[0] == "ok":
            accepted.add(kind.name)
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "Q5_0"} <= accepted
    assert not {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"} & accepted


def test_every_base_tensor_missing_or_misshapen(
    small: TinyModel, worker: Worker, tmp_path: Path
) -> None:
    """Each of them is named when it is not there, transposed or of another number of dimensions."""
    names = [t.name.decode() for t in fresh(small).tensors if b"delta" not in t.name]
    for name in names:
        g = fresh(small)
        g.drop_tensor(name)
        kind, field = outcome(worker, g, tmp_path / "a.gguf")
        if name != "output.weight":  # without it the embedding is the output
            assert (kind, field) == ("FormatError", name)
        g = fresh(small)
        t = g.tensor(name)
        t.ne = [1, *t.ne] if len(t.ne) == 1 or t.ne[0] == t.ne[1] else t.ne[::-1]
        assert outcome(worker, g, tmp_path / "a.gguf") == ("FormatError", name)


def tokens(change: Callable[[list[bytes]], None]) -> Change:
    def apply(g: Gguf) -> None:
        values = g.value(TOKENIZER + "tokens")
        change(values)
        g.set_array(TOKENIZER + "tokens", "str", values)

    return apply


def put(at: int, value: bytes) -> Change:
    return tokens(lambda t: t.__setitem__(at, value))


def special(name: str, value: int) -> Change:
    return lambda g: g.set(f"{TOKENIZER}{name}_token_id", "u32", value)


def strings(key: str, values: list[bytes]) -> Change:
    return lambda g: g.set_array(TOKENIZER + key, "str", values)


def sentencepiece(g: Gguf) -> None:
    """An SPM vocabulary without byte tokens."""
    g.set(TOKENIZER + "model", "str", "llama")
    g.set_array(TOKENIZER + "scores", "f32", [0.0] * N)


# name: (change, field or "" if it must load)
TOKENIZERS: dict[str, tuple[Change, str]] = {
    "short": (tokens(lambda t: t.pop()), "tokens"),
    "long": (tokens(lambda t: t.append(b"more")), "tokens"),
    "none": (tokens(lambda t: t.clear()), "tokens"),
    "twice": (put(20, b"a"), "tokens"),
    "nul": (put(20, b"a\0b"), "tokens"),
    "empty": (put(20, b""), ""),
    "empty_twice": (lambda g: (put(20, b"")(g), put(21, b"[EMPTY_20]")(g)), "tokens"),
    "not_utf8": (put(20, b"\xff\xfe"), ""),
    "cut_utf8": (put(20, b"\xf0\x9f"), ""),
    "control_newline": (put(3, b"\x1b[31m\n"), ""),
    "very_long": (put(20, b"x" * 100_000), ""),
    "types_short": (lambda g: g.set_array(TOKENIZER + "token_type", "i32", [1]), "token_type"),
    "types_u32": (lambda g: g.set_array(TOKENIZER + "token_type", "u32", [1] * N), "token_type"),
    "types_odd": (lambda g: g.set_array(TOKENIZER + "token_type", "i32", [-5] * N), ""),
    "scores_i32": (lambda g: g.set_array(TOKENIZER + "scores", "i32", [0] * N), ""),
    "scores_u32": (lambda g: g.set_array(TOKENIZER + "scores", "u32", [0] * N), "scores"),
    "scores_i32_short": (lambda g: g.set_array(TOKENIZER + "scores", "i32", [0]), "scores"),
    "scores_short": (lambda g: g.set_array(TOKENIZER + "scores", "f32", [0.0]), "scores"),
    "bos_is_n": (special("bos", N), "bos_token_id"),
    "eos_is_n": (special("eos", N), "eos_token_id"),
    "eos_max": (special("eos", 2**32 - 1), "eos_token_id"),
    "eot_is_n": (special("eot", N), "eot_token_id"),
    "unknown_is_n": (special("unknown", N), "unknown_token_id"),
    "merge_without_space": (strings("merges", [b"th"]), "merges"),
    "merge_empty": (strings("merges", [b""]), "merges"),
    "merge_space_first": (strings("merges", [b" t"]), "merges"),
    "merge_not_utf8": (strings("merges", [b"\xff \xfe", b"a  b"]), ""),
    "merges_numbers": (lambda g: g.set_array(TOKENIZER + "merges", "u32", [1]), "merges"),
    "model_unknown": (lambda g: g.set(TOKENIZER + "model", "str", "bert"), "model"),
    "model_empty": (lambda g: g.set(TOKENIZER + "model", "str", ""), "model"),
    "model_none": (lambda g: g.set(TOKENIZER + "model", "str", "none"), ""),
    "pre_unknown": (lambda g: g.set(TOKENIZER + "pre", "str", "no such rule"), "tokenizer"),
    "sentencepiece_without_bytes": (sentencepiece, "tokens"),
    "template_number": (lambda g: g.set("tokenizer.chat_template", "u32", 1), ""),
    "template_not_utf8": (lambda g: g.set("tokenizer.chat_template", "str", b"\xff"), ""),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bad_tokenizers(name: str, small: TinyModel, worker: Worker, tmp_path: Path) -> None:
    """Refused with the key's name, or harmless."""
    change, field = TOKENIZERS[name]
    g = fresh(small)
    change(g)
    kind, found = outcome(worker, g, tmp_path / "a.gguf")
    assert kind == ("FormatError" if field else "ok"), found
    assert field in found


PRES = "default llama-bpe deepseek-llm deepseek-v3 falcon starcoder gpt-2 jina-v2-code command-r qwen2 "
PRES += (
    "stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe viking jais tekken smollm codeshell bloom "
)
PRES += (
    "gpt3-finnish exaone exaone4 chameleon minerva-7b megrez gpt-4o superbpe trillion bailingmoe "
)
PRES += (
    "llama4 pixtral seed-coder hunyuan hunyuan-dense kimi-k2 grok-2 gemma4 granite-docling whisper"
)


def test_every_splitting_rule(small: TinyModel, worker: Worker, tmp_path: Path) -> None:
    """Names that libllama knows for tokenizer.ggml.pre tokenize or are refused; none aborts."""
    for pre in PRES.split():
        g = fresh(small)
        g.set(TOKENIZER + "pre", "str", pre)
        outcome(worker, g, tmp_path / "a.gguf")
