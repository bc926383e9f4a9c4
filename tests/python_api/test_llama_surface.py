"""Every public name of llama_cpp.Llama, and every argument, is either supported or refused by name.

The walk is over that class's own signatures, so what a new version adds fails here until it is decided.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import llama_cpp
import pytest
from llama_cpp import Llama
from models import TinyModel, random_tokens
from sardine_gguf import Sardine

PROMPT = random_tokens(6)
MESSAGES = [{"role": "user", "content": "the rain"}]
DECISIONS = (ValueError, TypeError, AttributeError, NotImplementedError)

# Arguments of the constructor that do something here (the other tests say what).
CONSTRUCTOR = {
    "model_path", "n_ctx", "n_batch", "n_threads", "seed", "verbose", "type_k", "type_v",
    "last_n_tokens_size", "n_gpu_layers",
}  # fmt: skip
# Those that ask for what is done either way.
EITHER = {"logits_all": True, "no_perf": True, "flash_attn": True}
# The others, with a value that asks for something else.
REFUSED: dict[str, Any] = {
    "split_mode": 2, "main_gpu": 1, "tensor_split": [1.0], "vocab_only": True,
    "use_mmap": False, "use_mlock": True, "kv_overrides": {"a": 1}, "n_ubatch": 64, "n_threads_batch": 63,
    "rope_scaling_type": 2, "pooling_type": 1, "attention_type": 1, "rope_freq_base": 1e4,
    "rope_freq_scale": 0.5, "yarn_ext_factor": 1.0, "yarn_attn_factor": 2.0, "yarn_beta_fast": 16.0,
    "yarn_beta_slow": 2.0, "yarn_orig_ctx": 64, "embedding": True, "offload_kqv": False, "op_offload": True,
    "swa_full": True, "lora_base": "x", "lora_scale": 0.5, "lora_path": "x", "numa": True,
    "chat_format": "chatml", "chat_handler": print, "draft_model": print, "tokenizer": print,
    "spm_infill": True, "kwargs": None,
}  # fmt: skip

SAMPLING = {
    "temperature", "top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repeat_penalty",
    "top_k", "mirostat_mode", "mirostat_tau", "mirostat_eta", "grammar",
}  # fmt: skip
CALL = SAMPLING | {"max_tokens", "stop", "stream", "seed", "model", "logit_bias"}
COMPLETION = CALL | {"prompt", "logprobs", "echo"}
TEMP = SAMPLING - {"temperature"} | {"temp"}
NOT_IN_TEXT: dict[str, Any] = {
    "suffix": "x", "tfs_z": 0.5, "stopping_criteria": print, "logits_processor": [print],
}  # fmt: skip
NOT_IN_CHATS: dict[str, Any] = {
    "functions": [{"name": "f"}], "function_call": "auto", "tools": [{"type": "function"}],
    "tool_choice": "auto", "tfs_z": 0.5, "logits_processor": [print],
}  # fmt: skip
NOT_IN_TOKENS: dict[str, Any] = {"tfs_z": 0.5, "penalize_nl": False, "logits_processor": [print]}
# Of each method: what is supported, and what is not, with a value that must be refused.
METHODS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "create_completion": (COMPLETION, NOT_IN_TEXT),
    "__call__": (COMPLETION, NOT_IN_TEXT),
    "create_chat_completion": (
        CALL | {"messages", "response_format", "logprobs", "top_logprobs"},
        NOT_IN_CHATS,
    ),
    "generate": (
        TEMP | {"tokens"},
        {**NOT_IN_TOKENS, "stopping_criteria": print, "reset": False},
    ),
    "sample": (TEMP, {**NOT_IN_TOKENS, "idx": 0}),
    "tokenize": ({"text", "add_bos", "special"}, {}),
    "detokenize": ({"tokens", "prev_tokens", "special"}, {}),
    "eval": ({"tokens"}, {}),
    "load_state": ({"state"}, {}),
    "set_seed": ({"seed"}, {}),
    "create_chat_completion_openai_v1": ({"args", "kwargs"}, {}),  # handed on
    **{
        name: (set(), {})
        for name in (
            "close", "n_ctx", "n_embd", "n_vocab", "reset", "save_state", "token_bos", "token_eos",
            "token_nl",
        )
    },
}  # fmt: skip
# Methods and attributes that are not here, as a whole.
ABSENT = {
    "create_embedding", "embed", "pooling_type", "set_cache", "tokenizer", "eval_logits", "eval_tokens",
    "ctx", "logits_to_logprobs", "longest_token_prefix", "cache", "chat_format", "chat_handler",
    "context_params", "draft_model", "input_ids", "kv_overrides", "last_n_tokens_size", "lora_base",
    "lora_path", "lora_scale", "model_params", "n_batch", "n_threads", "n_threads_batch", "numa",
    "scores", "spm_infill", "tensor_split", "tokenizer_", "verbose",
}  # fmt: skip
PRESENT = {"model", "model_path", "metadata", "n_tokens"}


def parameters(method: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(method).parameters)
    found.pop("self", None)
    return found


def defaults(method: Any) -> dict[str, Any]:
    return {
        n: p.default
        for n, p in parameters(method).items()
        if p.default is not inspect.Parameter.empty
    }


@pytest.fixture
def model(tiny: TinyModel) -> Iterator[Sardine]:
    with tiny.open(n_ctx=64) as m:
        m.eval(PROMPT)
        yield m


def first_arguments(name: str) -> list[Any]:
    if name == "create_chat_completion":
        return [MESSAGES]
    return [] if name == "sample" else [PROMPT]


def run(model: Sardine, name: str, /, **options: Any) -> Any:
    """Calls a method that generates; an iterator is run to its second entry."""
    result = getattr(model, name)(*first_arguments(name), **options)
    return [x for x, _ in zip(result, range(2), strict=False)] if name == "generate" else result


# ---- the walk ----


def test_every_argument_of_the_constructor_is_decided() -> None:
    assert set(parameters(Llama.__init__)) == CONSTRUCTOR | set(EITHER) | set(REFUSED)


def test_every_method_and_argument_is_decided() -> None:
    methods = {
        n for n in dir(Llama) if not n.startswith("_") and inspect.isfunction(getattr(Llama, n))
    } | {"__call__"}
    assert methods <= set(METHODS) | ABSENT
    for name, (supported, refused) in METHODS.items():
        assert set(parameters(getattr(Llama, name))) == supported | set(refused), name


def test_every_attribute_is_decided() -> None:
    """Properties of the class, and what its constructor sets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Llama.__init__)))
    found = {n for n, v in vars(Llama).items() if isinstance(v, property)}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for t in targets:
            if (
                isinstance(t, ast.Attribute)
                and isinstance(t.value, ast.Name)
                and t.value.id == "self"
            ):
                found.add(t.attr)
    public = {n for n in found if not n.startswith("_")}
    assert len(public) > 20
    assert public <= ABSENT | PRESENT


# ---- what is decided holds ----


def test_defaults_of_the_constructor_may_be_spelled_out(tiny: TinyModel) -> None:
    given = {n: v for n, v in defaults(Llama.__init__).items() if n not in ("n_ctx", "verbose")}
    with Sardine(model_path=str(tiny.gguf), n_ctx=64, verbose=False, **given) as m:
        assert m.n_ctx() == 64


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED)
def test_refused_by_the_constructor(tiny: TinyModel, name: str, value: Any) -> None:
    with pytest.raises(DECISIONS, match=rf"\b{name}\b"):
        Sardine(model_path=str(tiny.gguf), n_ctx=64, **{name: value})


@pytest.mark.parametrize(("name", "value"), EITHER.items(), ids=EITHER)
def test_either_way(tiny: TinyModel, name: str, value: Any) -> None:
    """The same tokens."""
    found = []
    for v in (value, not value):
        with Sardine(model_path=str(tiny.gguf), n_ctx=64, n_threads=1, **{name: v}) as m:
            found.append(list(m.generate(PROMPT, temp=0.0, max_tokens=4)))
    assert found[0] == found[1]


GENERATING = ("create_completion", "__call__", "create_chat_completion", "generate", "sample")


@pytest.mark.parametrize("name", GENERATING)
def test_defaults_of_a_method_may_be_spelled_out(model: Sardine, name: str) -> None:
    run(
        model,
        name,
        **{**defaults(getattr(Llama, name)), **({"max_tokens": 3} if name[0] == "c" else {})},
    )


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [(n, a, v) for n, (_, refused) in METHODS.items() for a, v in refused.items()],
)
def test_refused_by_a_method(model: Sardine, name: str, argument: str, value: Any) -> None:
    with pytest.raises(DECISIONS, match=rf"\b{argument}\b"):
        run(model, name, **{argument: value})


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_absent(model: Sardine, name: str) -> None:
    """Reading says what to use instead; setting, which would change nothing, is refused."""
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=rf"'{name}': \w+"):
        getattr(model, name)
    with pytest.raises(AttributeError, match=name):
        setattr(model, name, None)


def test_generate_of_tokens(model: Sardine) -> None:
    """As in llama-cpp-python's docstring: ids in, ids out, the option named temp."""
    tokens = model.tokenize(b"the rain")
    found = list(
        zip(model.generate(tokens, top_k=40, top_p=0.95, temp=0.0), range(5), strict=False)
    )
    assert [t for t, _ in found] == list(model.generate_tokens(tokens, temperature=0, max_tokens=5))
    iterator: Any = model.generate(tokens, temp=0.0)
    next(iterator)
    with pytest.raises(TypeError, match="send"):
        iterator.send([5])
    with pytest.raises(ValueError, match=r"stop"):
        model.generate(tokens, stop="a")
    with pytest.raises(ValueError, match=r"temperature and temp"):
        model.generate(tokens, temp=1.0, temperature=1.0)


def test_version_of_the_walk() -> None:
    """Pinned by pyproject.toml."""
    assert llama_cpp.__version__ == "0.3.36"
