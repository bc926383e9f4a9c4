"""A script written for llama-cpp-python: the uses that its README shows, results as one JSON object.

usage: python llama_script.py MODEL SECTION...
"""

import json
import sys

from llama_cpp import Llama

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that outputs in JSON."},
    {"role": "user", "content": "Who won the world series in 2020"},
]
GREEDY = {"temperature": 0.0, "max_tokens": 24}


def completion(llm):
    output = llm(
        "Q: Name the planets in the solar system? A: ",
        max_tokens=32,
        stop=["Q:", "\n"],
        echo=True,
        temperature=0.0,
    )
    same = llm.create_completion("Q: Name the planets in the solar system? A: ", **GREEDY)
    return [output, same]


def completion_stream(llm):
    return list(llm("What is 15% of 80?", stream=True, **GREEDY))


def completion_seeded(llm):
    options = {"temperature": 1.3, "max_tokens": 24, "top_k": 0, "min_p": 0.0, "top_p": 0.95}
    return [llm("What is", seed=s, typical_p=t, **options) for s in (1, 2) for t in (0.7, 1.0)]


def completion_logprobs(llm):
    return [
        llm("What is 15% of 80?", logprobs=3, **GREEDY),
        llm("What is 15% of 80?", logprobs=3, echo=True, **GREEDY),
    ]


def chat(llm):
    return llm.create_chat_completion(messages=MESSAGES, **GREEDY)


def chat_stream(llm):
    return list(llm.create_chat_completion(messages=MESSAGES, stream=True, **GREEDY))


def chat_logprobs(llm):
    return llm.create_chat_completion(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)


def json_mode(llm):
    return llm.create_chat_completion(
        messages=MESSAGES, response_format={"type": "json_object"}, **GREEDY
    )


def json_schema(llm):
    schema = {
        "type": "object",
        "properties": {"team_name": {"type": "string", "maxLength": 8}},
        "required": ["team_name"],
    }
    return llm.create_chat_completion(
        messages=MESSAGES,
        response_format={"type": "json_object", "schema": schema},
        temperature=0.0,
        max_tokens=100,
    )


def tokens(llm):
    ids = llm.tokenize(b"What is 15% of 80?")
    return [
        ids,
        llm.tokenize(b"[INST] hi", add_bos=False, special=True),
        llm.n_vocab(),
        llm.n_ctx(),
        llm.n_embd(),
        llm.token_bos(),
        llm.token_eos(),
        llm.token_nl(),
        llm.metadata["general.architecture"],
    ]


def token_loop(llm):
    out = []
    for token in llm.generate(
        llm.tokenize(b"What is 15% of 80?"), top_k=40, temp=0.0, repeat_penalty=1.0
    ):
        if token == llm.token_eos() or len(out) == 12:
            break
        out.append(token)
    return out


def state(llm):
    llm.reset()
    llm.eval(llm.tokenize(b"What is 15% of 80?"))
    saved = llm.save_state()
    first = llm("What is 15% of 80? And", **GREEDY)
    llm("Something else", **GREEDY)
    llm.load_state(saved)
    n_tokens = llm.n_tokens
    second = llm("What is 15% of 80? And", **GREEDY)
    return [n_tokens, first, second]


def main():
    llm = Llama(
        model_path=sys.argv[1],
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        seed=1337,
        logits_all=True,
        flash_attn=True,
        verbose=False,
    )
    print(json.dumps({name: globals()[name](llm) for name in sys.argv[2:]}, default=float))
    llm.close()


if __name__ == "__main__":
    main()
