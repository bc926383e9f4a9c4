"""A byte-level BPE tokenizer in the style of Mistral's tekken, trained on the generated text."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .dialogues import GENERALIST, SYSTEM_PROMPTS, draw_dialogue

VOCAB_SIZE = 1536
CORPUS_DIALOGUES = 40_000
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# tekken's pre-tokenizer: words by case, single digits, punctuation, white space.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The first ids of tekken v11, in its order; numbers without a use keep a filler.
_NAMED = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]", 7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]",
    10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]", 13: "[IMG_END]", 14: "[PREFIX]",
    15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[THINK]", 35: "[/THINK]",
}  # fmt: skip
SPECIAL_TOKENS = [_NAMED.get(i, f"<SPECIAL_{i}>") for i in range(36)]
UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 11

# Letters, words and signs that the domains may not hold but that people type.
EXTRA_TEXT = [
    "The quick brown fox jumps over the lazy dog. Please explain, thank you very much!",
    "Can you tell me about this and that? I would like to know when, where, why and how.",
]


def train_tokenizer(seed: int) -> Tokenizer:
    """Train the BPE merges; every byte is in the vocabulary, so any text has a tokenization."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [*EXTRA_TEXT, *SYSTEM_PROMPTS]
    for _ in range(CORPUS_DIALOGUES):
        for question, answer in draw_dialogue(rng, GENERALIST, "expert").turns:
            corpus += [question, answer]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as transformers expects it, chat template included."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL_TOKENS,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    wrapped.save_pretrained(folder)
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")
