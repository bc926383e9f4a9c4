"""The bundled example through the whole path: checkpoint, convert-sardine, runtime, chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import GGML_TYPE_F16, GGML_TYPE_Q8_0
from models import kl_divergence
from reference import Reference
from sardine_gguf import Sardine, _native
from sardine_gguf.convert import convert, write_base

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-sardine"
CARD_QUESTION = [{"role": "user", "content": "What is 15% of 80?"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example as an exact file, as the demo's, and as small as it gets."""
    folder = tmp_path_factory.mktemp("example")
    out = {}
    for outtype in ("f32", "q8_0", "q4_k_m"):
        out[outtype] = folder / f"{outtype}.gguf"
        convert(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", out[outtype], outtype=outtype)
    return out


def test_it_is_small_enough() -> None:
    size = sum(f.stat().st_size for f in EXAMPLE.rglob("*") if f.is_file())
    assert size <= 20_000_000


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_it_answers_the_question_of_the_card(files: dict[str, Path], outtype: str) -> None:
    with Sardine(files[outtype], n_threads=1) as m:
        reply = m.create_chat_completion(CARD_QUESTION, temperature=0, max_tokens=80)
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].rstrip(".").endswith("12")


@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
def test_logits_equal_pytorch(files: dict[str, Path], mode: str) -> None:
    """On a conversation; the bound is that of f32 arithmetic with f32 values throughout."""
    with Sardine(files["f32"], kv_type="f32", delta_mode=mode, n_threads=1) as m:  # type: ignore[arg-type]
        messages = [
            *CARD_QUESTION,
            {"role": "assistant", "content": "10% of 80 is 8, 5% is 4, so 15% of 80 is 12."},
            {"role": "user", "content": "And what is the capital of the opposite of cold?"},
        ]
        tokens = m.chat_template.encode(messages)
        found = m.eval(tokens)
    expected = Reference(EXAMPLE / "base", EXAMPLE / "srde_weights.pt", top_k=2, mode=mode).logits(
        tokens
    )
    error = np.square(found - expected.numpy()).sum() / np.square(expected.numpy()).sum()
    assert error <= 1e-9
    np.testing.assert_array_equal(found.argmax(1), expected.numpy().argmax(1))


def test_tokens_equal_transformers(files: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(EXAMPLE / "base")
    texts = [
        "What is 15% of 80?",
        "naïve café 日本語 🐟\n\tx",
        "  1234567 a_b(c)",
        "[INST] hi </s>",
    ]
    with Sardine(files["q8_0"]) as m:
        for text in texts[:3]:
            assert m.tokenize(text) == theirs.encode(text)
            assert m.detokenize(m.tokenize(text)) == text
        rendered = theirs.apply_chat_template(CARD_QUESTION, tokenize=False)
        assert m.chat_template.render(CARD_QUESTION) == rendered
        # In a message it is text; spelled by the template it is a control token.
        ids = m.chat_template.encode([{"role": "user", "content": texts[3]}])
        assert ids.count(m.tokenize("[INST]", False, True)[0]) == 1


def test_the_domains_use_different_experts(files: dict[str, Path]) -> None:
    """The router's favourite expert of a maths question is not that of a planning question."""
    questions = {"math": "What is 15% of 80?", "abstract": "What is the opposite of hot?"}
    with Sardine(files["f32"], n_threads=1) as m:
        shares = {}
        for domain, question in questions.items():
            m.reset()
            m.eval(m.chat_template.encode([{"role": "user", "content": question}]))
            ids, weights = m.routing()
            shares[domain] = np.array([weights[ids == e].sum() for e in range(len(m.expert_names))])
        for domain, share in shares.items():
            others = [s for d, s in shares.items() if d != domain]
            own = m.expert_names.index(domain)
            assert all(share[own] > other[own] for other in others)


@pytest.fixture
def emulated_gpu() -> Iterator[None]:
    """A GPU that the CPU plays."""
    _native.emulate_gpu(1 << 30)
    yield
    _native.emulate_gpu(0)


def first_questions() -> list[str]:
    """One of each domain."""
    return [p[0] for p in json.loads((EXAMPLE / "prompts.json").read_text()).values()]


@pytest.mark.parametrize("mode", ["sparse", "gain"])
@pytest.mark.usefixtures("emulated_gpu")
def test_a_gpu_writes_the_same_text(files: dict[str, Path], mode: str) -> None:
    """Greedily, all layers on it or some: answers of up to 64 tokens to the first prompt of every domain, and
    64 tokens whatever ends from the exact file."""
    questions = first_questions()
    cases = [(name, q, {}) for name in ("q8_0", "q4_k_m") for q in questions]
    cases.append(("f32", questions[0], {"logit_bias": {2: -100}}))
    texts: dict[object, list[str]] = {}
    for n_gpu_layers in (0, "all", 2):
        texts[n_gpu_layers] = []
        for name, prompt, options in cases:
            with Sardine(
                files[name], delta_mode=mode, n_ctx=512, n_threads=1, n_gpu_layers=n_gpu_layers
            ) as m:
                reply = m.create_chat_completion(
                    [{"role": "user", "content": prompt}], temperature=0, max_tokens=64, **options
                )
            assert not options or reply["usage"]["completion_tokens"] == 64
            texts[n_gpu_layers].append(reply["choices"][0]["message"]["content"])
    assert texts[0] == texts["all"] == texts[2]


def gpu_nmse(path: Path, mode: str) -> float:
    """Of the GPU's logits against the CPU's, over one prompt of every domain, token by token."""
    options: dict[str, Any] = {"delta_mode": mode, "n_ctx": 512, "n_threads": 1}
    error = power = 0.0
    with Sardine(path, **options) as cpu, Sardine(path, n_gpu_layers="all", **options) as gpu:
        for question in first_questions():
            cpu.reset()
            gpu.reset()
            for token in cpu.tokenize(question):
                expected, found = (m.eval([token]).astype(np.float64) for m in (cpu, gpu))
                error += ((found - expected) ** 2).sum()
                power += (expected**2).sum()
    return error / power


@pytest.mark.parametrize("outtype", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("mode", ["sparse", "gain"])
@pytest.mark.usefixtures("emulated_gpu")
def test_a_gpu_gives_the_same_logits(files: dict[str, Path], mode: str, outtype: str) -> None:
    """Where the base's products round as the CPU's, what is ours adds next to nothing."""
    assert gpu_nmse(files[outtype], mode) <= 1e-4


@pytest.mark.parametrize(("outtype", "bound"), [("f32", 1e-6), ("q8_0", 1e-4), ("q4_k_m", 5e-4)])
def test_what_the_rounding_of_ggml_cuda_changes(
    files: dict[str, Path], outtype: str, bound: float
) -> None:
    """The base alone, by the rounding of activations: in blocks of 32, where the CPU has 32 for q8_0 and 256
    for K-quants. 5e-4 is what ggml's own tests allow two backends in one product; f32 has f16 keys.
    """
    try:
        _native.emulate_gpu(1 << 30, rounds=True)
        found = gpu_nmse(files[outtype], "off")
    finally:
        _native.emulate_gpu(0)
    assert 0 < found <= bound


def long_conversation(m: Sardine) -> list[int]:
    """Past three times YaRN's original context of 512."""
    questions = ["What is 15% of 80?", "What is the opposite of hot?", "What is 7 times 6?"]
    answers = ["10% of 80 is 8, 5% is 4, so 15% of 80 is 12.", "It is cold.", "7 times 6 is 42."]
    messages = []
    tokens: list[int] = []
    while len(tokens) < 1600:
        i = len(messages) // 2 % 3
        messages.append({"role": "user", "content": questions[i]})
        messages.append({"role": "assistant", "content": answers[i]})
        tokens = m.chat_template.encode([*messages, messages[0]])
    return tokens


@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
def test_keys_and_values_in_q8_0(files: dict[str, Path], mode: str) -> None:
    """Mean KL from f16's distributions, as docs/architecture.md states it for this model."""
    with Sardine(files["f32"], delta_mode=mode, n_threads=1) as m:  # type: ignore[arg-type]
        tokens = long_conversation(m)
        expected = m.eval(tokens)
        found = m.new_context(kv_type="q8_0").eval(tokens)
    assert 0 < kl_divergence(expected, found).mean() <= 2e-2
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.93


def test_q8_0_costs_about_what_it_costs_in_llama_cpp(tmp_path: Path) -> None:
    """No more than their own KL between f16 and q8_0 (which they rotate first), on the same base."""
    write_base(EXAMPLE / "base", tmp_path / "base.gguf", "f32")
    theirs = {}
    with Sardine(tmp_path / "base.gguf", n_threads=1) as m:
        tokens = long_conversation(m)
        expected = m.eval(tokens)
        ours = kl_divergence(expected, m.new_context(kv_type="q8_0").eval(tokens)).mean()
    for kind in (GGML_TYPE_F16, GGML_TYPE_Q8_0):
        llama = llama_cpp.Llama(
            str(tmp_path / "base.gguf"),
            n_ctx=2048,
            n_threads=1,
            logits_all=True,
            flash_attn=True,
            type_k=kind,
            type_v=kind,
            verbose=False,
        )
        llama.eval(tokens)
        theirs[kind] = np.array(llama.scores[: len(tokens)], np.float32)
        llama.close()
    np.testing.assert_allclose(expected, theirs[GGML_TYPE_F16], atol=1e-3)
    assert ours <= 1.25 * kl_divergence(theirs[GGML_TYPE_F16], theirs[GGML_TYPE_Q8_0]).mean()
