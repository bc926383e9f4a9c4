"""Work that is not done twice: graphs, and the tokens of earlier turns."""

from __future__ import annotations

import os
from typing import Any

import pytest
from models import TinyModel, random_tokens, text_of
from sardine_gguf import Sardine

# Of what is built for a shape: with all layers on a GPU the CPU has the embeddings, and the GPU the rest.
PARTS = 2 if os.environ.get("SARDINE_TEST_GPU") else 1


def built(m: Sardine) -> int:
    return m.session.counts["graphs"]


def counts(m: Sardine) -> tuple[int, int, int]:
    c = m.session.counts
    return c["tokens"], c["batches"], c["graphs"]


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("mode", ["sparse", "gain", "off"])
def test_decoding_builds_no_graph_per_token(wide: TinyModel, mode: str, kv_type: str) -> None:
    """One for the prompt and one for all tokens after it, up to the end of the context."""
    with wide.open(delta_mode=mode, kv_type=kv_type) as m:
        m.session.decode(random_tokens(40))
        assert built(m) == PARTS
        for t in random_tokens(200):
            m.session.decode([t])
        assert counts(m) == (240, 201, 2 * PARTS)


def test_flash_attention_builds_one_graph_for_256_tokens(wide: TinyModel) -> None:
    """Only in mode off up to 512 positions, and on a GPU, where graphs depend on them in steps of 256."""
    with wide.open(delta_mode="off", kv_type="f16", n_ctx=768) as m:
        tokens = random_tokens(700)
        m.session.decode(tokens[:1])  # a GPU's graphs have their memory from then on
        before = m.session.memory_bytes
        for t in tokens[1:]:
            m.session.decode([t])
        assert built(m) == 3 * PARTS
        assert m.session.memory_bytes == before


def test_prompts_do_not_evict_the_decode_graph(wide: TinyModel) -> None:
    """Batches and single tokens in turn; equal batches share a graph too."""
    with wide.open(n_batch=32) as m:
        for _ in range(3):
            m.session.decode(random_tokens(64))
            for t in random_tokens(10):
                m.session.decode([t])
        assert counts(m) == (222, 36, 2 * PARTS)


def test_a_generation_builds_two_graphs(wide: TinyModel) -> None:
    """Prompt and tokens; a second one on the same context none for its tokens."""
    with wide.open(kv_type="f16") as m:
        text_of(m, random_tokens(30), max_tokens=40, temperature=0)
        before = built(m)
        assert before == 2 * PARTS
        text_of(m, random_tokens(30, seed=3), max_tokens=40, temperature=0)
        assert built(m) == before


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_chat_of_20_turns_evaluates_only_new_tokens(wide: TinyModel, kv_type: str) -> None:
    """Counted by the context: the sum of all turns is the length of the last prompt and its answer."""
    with wide.open(kv_type=kv_type, n_ctx=4096) as m:
        messages: list[dict[str, Any]] = []
        known = 0
        for turn in range(20):
            messages.append({"role": "user", "content": f"the rain in the north, number {turn}"})
            prompt = m.chat_template.encode(messages)
            before = m.session.counts["tokens"]
            held = m.session.tokens
            reply = m.create_chat_completion(messages, temperature=0, max_tokens=12)
            usage = reply["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            evaluated = m.session.counts["tokens"] - before
            assert usage["prompt_tokens"] == len(prompt)
            # The answer's last token was sampled but not evaluated.
            assert evaluated == len(prompt) - cached + usage["completion_tokens"] - 1
            # What the template repeats of the turns before is what the context holds of it.
            assert prompt[:cached] == held[:cached]
            assert cached == len(prompt) - 1 or prompt[: cached + 1] != held[: cached + 1]
            assert cached >= known
            known = len(prompt)  # all of this prompt begins the next one
            answer = reply["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": answer})
        assert m.session.counts["graphs"] <= (1 + 20) * PARTS
