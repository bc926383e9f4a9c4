"""Arguments of public methods: a wrong one is a TypeError or ValueError that names it; nothing is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import TinyModel
from sardine_gguf import ContextOverflow, SamplingOptions, Sardine

NAN, INF = float("nan"), float("inf")
USER = [{"role": "user", "content": "the rain"}]
DEEP: Any = "x"
for _ in range(100_000):
    DEEP = [DEEP]
ROUND: dict[str, Any] = {"role": "user", "content": "x"}
ROUND["more"] = ROUND


class Odd:
    """Something that no argument may be."""

    def __repr__(self) -> str:
        return "odd " * 1000


ODD = Odd()
NO_INTEGER = [True, 1.5, 2.0, "5", b"5", [5], ODD, NAN]
NO_NUMBER = ["hot", True, [1.0], ODD, 1j]
NO_FLAG = ["no", 2, 1.0, [], ODD]
NO_TOKENS = [
    5,
    None,
    b"Hello",
    bytearray(b"x"),
    memoryview(b"x"),
    [1.5],
    ["a"],
    [True],
    [[1]],
    {1: 2},
    ODD,
]
NO_TEXT = [5, b"x", ["x"], ODD]

# name: (values of a wrong type, values out of range)
OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": (NO_INTEGER, []),
    "stop": ([5, b"x", [5], [["x"]], ["x", None], {"x": 1}, ODD], ["", ["x", ""]]),
    "reasoning_budget": (NO_INTEGER, [-2]),
    "reasoning_format": ([], ["xml", 5, ["auto"]]),
    "experts": (
        [5, ["math"], [("math", 1)], {1.5: 1}, {"math": True}, {"math": [1]}],
        ["math", {"x": 1}],
    ),
    "temperature": (NO_NUMBER, [NAN, INF, -1, 10**400]),
    "temp": (NO_NUMBER, [NAN, -1]),
    "top_k": (NO_INTEGER, [2**31, -(10**20)]),
    "top_p": (NO_NUMBER, [NAN, -0.1, 1.1]),
    "min_p": (NO_NUMBER, [NAN, -0.1, 1.1]),
    "typical_p": (NO_NUMBER, [NAN, -0.1, 1.1]),
    "xtc_probability": (NO_NUMBER, [NAN, 2]),
    "xtc_threshold": (NO_NUMBER, [NAN, 2]),
    "repeat_penalty": (NO_NUMBER, [NAN, 0, INF]),
    "presence_penalty": (NO_NUMBER, [NAN, INF, 1000]),
    "frequency_penalty": (NO_NUMBER, [NAN, INF, 1000]),
    "repeat_last_n": (NO_INTEGER, [-2, 2**31]),
    "mirostat_mode": (NO_INTEGER, [3, -1]),
    "mirostat_tau": (NO_NUMBER, [NAN, -1]),
    "mirostat_eta": (NO_NUMBER, [NAN, -1]),
    "logit_bias": (
        [5, [1], [(5, 1.0)], "5", {1.5: 1}, {True: 1}, {None: 1}, {5: "x"}, {5: None}, {5: True}],
        [
            {5: NAN},
            {5: INF},
            {"x": 1},
            {"-1": 1},
            {"1.5": 1},
            {320: 1},
            {-1: 1},
            {2**40: 1},
            {"": 1},
        ],
    ),
    "grammar": ([5, b"root", ["root"], ODD], ["", "root ::= ("]),
    "samplers": ([5, [5], {"top_k": 1}, ODD], ["hot", ["top_k", "hot"]]),
    "seed": (NO_INTEGER, [2**32]),
}
# How a message names a name that is given otherwise.
SPOKEN = {"temp": "temperature", "experts": "expert"}

CALLS: dict[str, Callable[[Sardine, dict[str, Any]], object]] = {
    "start": lambda m, o: m.start("the", **o),
    "generate": lambda m, o: m.generate("the", **o),
    "stream_generate": lambda m, o: m.stream_generate("the", **o),
    "generate_tokens": lambda m, o: m.generate_tokens([1, 9], **o),
    "start_chat": lambda m, o: m.start_chat(USER, **o),
    "create_completion": lambda m, o: m.create_completion("the", **o),
    "call, stream": lambda m, o: m("the", stream=True, **o),
    "create_chat_completion": lambda m, o: m.create_chat_completion(USER, **o),
    "chat, stream": lambda m, o: m.create_chat_completion(USER, stream=True, **o),
}

MESSAGES: list[tuple[type[Exception], str, Any]] = [
    *((TypeError, "^messages is", v) for v in (5, None, "hi", b"hi", {"role": "user"}, iter([]), ODD)),
    *((TypeError, r"^messages\[1\] is", [USER[0], v]) for v in (5, None, "hi", [], ODD)),
    *(
        (TypeError, r"^messages\[0\]\['content'\]", [{"role": "user", "content": v}])
        for v in (5, b"x", 1.5, True, {"type": "text"}, ODD, [5], ["x"], [None])
    ),
    *(
        (TypeError, r"^messages\[0\]\['content'\]\[0\]\['text'\] is", [
            {"role": "user", "content": [{"type": "text", **v}]}
        ])
        for v in ({}, {"text": None}, {"text": 5})
    ),
    (TypeError, r"^messages\[0\]\['role'\] is", [{"role": 5, "content": "x"}]),
    (TypeError, r"^messages\[0\]\['reasoning_content'\] is", [{"role": "assistant", "reasoning_content": 5}]),
    (TypeError, r"^messages\[0\]\['more'\]\[0\]", [{"role": "user", "content": "x", "more": [{1, 2}]}]),
    (TypeError, r"a key of messages\[0\]", [{"role": "user", "content": "x", 5: 1}]),
    (ValueError, r"^messages\[0\] is nested more than", [{"role": "user", "content": "x", "more": DEEP}]),
    (ValueError, r"^messages\[0\] is nested more than", [ROUND]),
]  # fmt: skip

# Calls that take a prompt, or token ids.
PROMPTS: list[Callable[[Sardine, Any], object]] = [
    lambda m, v: m.start(v),
    lambda m, v: m.generate(v),
    lambda m, v: m.stream_generate(v),
    lambda m, v: m.generate_tokens(v),
    lambda m, v: m(v),
    lambda m, v: m.create_completion(v, stream=True),
]
TOKENS: list[Callable[[Sardine, Any], object]] = [
    lambda m, v: m.eval(v),
    lambda m, v: m.detokenize(v),
    lambda m, v: m.detokenize_bytes(v),
]


def keyword(method: str, name: str, *given: Any, **more: Any) -> Callable[[Sardine, Any], object]:
    """A call with the argument of a name."""
    return lambda m, v: getattr(m, method)(*given, **more, **{name: v})


CHAT = "create_chat_completion"

# (error, what the message names, call, values)
OTHERS: list[tuple[type[Exception], str, Callable[[Sardine, Any], object], list[Any]]] = [
    *((TypeError, "^prompt", call, NO_TOKENS) for call in PROMPTS),
    *((ValueError, "^prompt.*vocabulary", call, [[1, -1], [320], [2**40]]) for call in PROMPTS[:4]),
    *((TypeError, "^tokens", call, [*NO_TOKENS, "text"]) for call in TOKENS),
    (ValueError, "^tokens.*vocabulary", lambda m, v: m.eval(v), [[-1], [320], [1, 2**31], [2**40]]),
    (ValueError, "no tokens", lambda m, v: m.eval(v), [[]]),
    (ValueError, "empty", lambda m, v: m.generate(v), [[]]),
    (TypeError, "^text is", lambda m, v: m.tokenize(v), [5, None, ["x"], ODD]),
    (TypeError, "^add_bos is", keyword("tokenize", "add_bos", "x"), NO_FLAG),
    (TypeError, "^special is", keyword("tokenize", "special", "x"), NO_FLAG),
    (TypeError, "^special is", keyword("detokenize", "special", [9]), NO_FLAG),
    (TypeError, "^stream is", keyword("create_completion", "stream", "x"), NO_FLAG),
    (TypeError, "^echo is", keyword("create_completion", "echo", "x"), NO_FLAG),
    (TypeError, "^logprobs is", keyword("create_completion", "logprobs", "x"), NO_INTEGER),
    (ValueError, "^logprobs is", keyword("create_completion", "logprobs", "x"), [-1]),
    (TypeError, "^model is", keyword("create_completion", "model", "x"), NO_TEXT),
    (TypeError, "^stream is", keyword(CHAT, "stream", USER), NO_FLAG),
    (TypeError, "^logprobs is", keyword(CHAT, "logprobs", USER), NO_FLAG),
    (TypeError, "^think_prompt is", keyword(CHAT, "think_prompt", USER), NO_FLAG),
    (TypeError, "^model is", keyword(CHAT, "model", USER), NO_TEXT),
    (TypeError, "^top_log", keyword(CHAT, "top_logprobs", USER, logprobs=True), NO_INTEGER),
    (ValueError, "^top_log", keyword(CHAT, "top_logprobs", USER, logprobs=True), [-1, 21]),
    (TypeError, "^seed is", lambda m, v: m.set_seed(v), NO_INTEGER),
    (ValueError, "^seed is", lambda m, v: m.set_seed(v), [2**32]),
    (TypeError, "^seed is", keyword("sample", "seed"), NO_INTEGER),
    (TypeError, "state", lambda m, v: m.load_state(v), [5, None, [1]]),
    (TypeError, "expert", lambda m, v: setattr(m, "experts", v), OPTIONS["experts"][0]),
    (ValueError, "expert", lambda m, v: setattr(m, "experts", v), OPTIONS["experts"][1]),
]

CONTEXT: dict[str, tuple[list[Any], list[Any]]] = {
    "n_ctx": ([2.5, True, b"5", [5], ODD], [-1, 2**31, 10**30, "most", "5"]),
    "n_batch": (NO_INTEGER, [0, -1, 2**31, 10**30]),
    "n_threads": (NO_INTEGER, [0, -1, 2**31]),
    "kv_type": ([5, b"f16", ["f16"], ODD], ["q4_0", ""]),
    "delta_mode": ([5, b"off", ["off"], ODD], ["on", ""]),
    "experts": OPTIONS["experts"],
}
LOADING: dict[str, tuple[list[Any], list[Any]]] = {
    **CONTEXT,
    "adapter": ([5, ["x"], ODD], []),
    "n_gpu_layers": ([True, 1.5, [1], b"all", ODD], [-2, "most", 2**31]),
    "seed": OPTIONS["seed"],
    "verbose": (NO_FLAG, []),
    "last_n_tokens_size": (NO_INTEGER, [2**31]),
    "type_k": ([], ["f16", [1], 1.5, 99]),
}


@pytest.fixture(scope="module")
def model(wide: TinyModel) -> Iterator[Sardine]:
    with wide.open() as m:
        m.eval([1, 9, 10])
        yield m


def check(model: Sardine, error: type[Exception], name: str, call: Callable[[], object]) -> None:
    """This error, short, and not one token evaluated."""
    before = (model.session.counts, model.session.tokens, model.experts, model.sampling)
    with pytest.raises((TypeError, ValueError), match=name) as found:
        call()
    assert isinstance(found.value, error)
    assert len(str(found.value)) < 400
    assert (model.session.counts, model.session.tokens, model.experts, model.sampling) == before


def wrong(table: dict[str, tuple[list[Any], list[Any]]]) -> list[tuple[type[Exception], str, Any]]:
    return [
        (error, name, value)
        for name, values in table.items()
        for error, several in zip((TypeError, ValueError), values, strict=True)
        for value in several
    ]


@pytest.mark.parametrize("how", CALLS)
def test_options_of_a_generation(model: Sardine, how: str) -> None:
    for error, name, value in wrong(OPTIONS):
        spoken = SPOKEN.get(name, name)
        check(model, error, spoken, lambda n=name, v=value: CALLS[how](model, {n: v}))  # type: ignore[misc]


def test_messages(model: Sardine) -> None:
    for error, name, value in MESSAGES:
        for call in (model.start_chat, model.create_chat_completion, model.chat_template.encode):
            check(model, error, name, lambda c=call, v=value: c(v))  # type: ignore[misc]


def test_other_arguments(model: Sardine) -> None:
    for error, name, call, values in OTHERS:
        for value in values:
            check(model, error, name, lambda c=call, v=value: c(model, v))  # type: ignore[misc]


def test_a_new_context(model: Sardine) -> None:
    for error, name, value in wrong(CONTEXT):
        spoken = SPOKEN.get(name, name)
        check(model, error, spoken, lambda n=name, v=value: model.new_context(**{n: v}))  # type: ignore[misc]


def test_the_constructor(wide: TinyModel) -> None:
    for error, name, value in wrong(LOADING):
        with pytest.raises((TypeError, ValueError), match=SPOKEN.get(name, name)) as found:
            Sardine(wide.gguf, **{"n_threads": 1, name: value})
        assert isinstance(found.value, error)
        assert len(str(found.value)) < 400
    for value in (5, ["x"], 1.5):
        with pytest.raises(TypeError, match="path"):
            Sardine(value)  # type: ignore[arg-type]


def test_what_is_accepted(wide: TinyModel) -> None:
    """NumPy's numbers, digits as keys, no limit as -1 or None."""
    with Sardine(
        str(wide.gguf), n_ctx=np.int64(64), n_batch=np.int32(8), n_threads=np.int8(1)
    ) as m:  # type: ignore[arg-type]
        assert m.n_ctx == 64
        prompt = np.array([1, 9, 10])
        options: dict[str, Any] = {
            "temperature": np.float32(0),
            "top_k": np.int64(3),
            "seed": np.uint32(5),
        }
        expected = list(m.generate_tokens([1, 9, 10], temperature=0, max_tokens=-1))
        assert len(expected) > 5
        for limit in (None, -1, -5, np.int64(-1), 1000):
            assert list(m.generate_tokens(prompt, max_tokens=limit, **options)) == expected  # type: ignore[arg-type]
        assert list(m.generate_tokens((1, 9, 10), max_tokens=0)) == []
        m.generate("the", logit_bias={"9": -INF, np.int64(10): 1}, stop=("a", "b"), max_tokens=1)  # type: ignore[dict-item]
        with pytest.raises(ContextOverflow, match="65 tokens"):
            m.start([1] * 65)


def test_sampling_options_of_ones_own() -> None:
    """Also where they are made, and through the model's `sampling`."""
    own = {k: v for k, v in OPTIONS.items() if k in SamplingOptions.__annotations__}
    del own["grammar"]  # needs a model
    for error, name, value in wrong(own):
        with pytest.raises((TypeError, ValueError), match=name) as found:
            SamplingOptions(**{name: value}).sampler(320, 64)
        assert isinstance(found.value, error)


def test_a_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        Sardine(str(tmp_path) + "\0")
