"""The tokenizer: a byte-level BPE made for copying.

A word must fall into the same pieces wherever it stands (after a space, in quotes, in JSON), or copying a
word never seen before is guesswork. So the merges are learnt in three steps and ranked in that order:
inside words, inside runs of punctuation, and last a space with a *finished* frequent word. A space then
never changes how the letters behind it split. Digits stand alone, no text is normalized, and all 256
bytes are in the alphabet: every Unicode string round-trips.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from prompt import END_OF_TEXT, IM_END, IM_START, Template, answer_text
from skills import FULL, training_chat
from words import ENGLISH

# ` ?\p{N}+` changes nothing (no merge has a digit): ONNX Runtime GenAI knows ` ?\p{L}+` only together with it
PATTERN = r"\p{N}| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = [END_OF_TEXT, IM_START, IM_END]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
LETTER_MERGES, SIGN_MERGES, SPACED_WORDS = 550, 70, 139
VOCAB = 256 + LETTER_MERGES + SIGN_MERGES + SPACED_WORDS + len(SPECIAL) + len(MARKS)
CONTEXT = 4096
SPACE = "Ġ"


def sample_text(chats: int = 6000) -> Iterable[str]:
    """Conversations as the model will read them, without the marks that are tokens of their own."""
    template = Template()
    for i in range(chats):
        chat = training_chat(random.Random(f"tokenizer {i}"), FULL)
        *history, last = chat.messages
        text = template.render(history, [t.schema for t in chat.tools], chat.thinking) + answer_text(
            last, chat.thinking
        )
        for mark in SPECIAL + MARKS:
            text = text.replace(mark, "\0")
        yield from text.split("\0")


def split(text: str) -> list[str]:
    """The pre-tokenizer's words, as text."""
    return [piece for piece, _ in pre_tokenizers.Split(Regex(PATTERN), behavior="isolated").pre_tokenize_str(text)]


def learn(words: Counter[str], merges: int) -> list[tuple[str, str]]:
    """Byte-level merges learnt from words with counts."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tok.train_from_iterator((w for w, n in sorted(words.items()) for _ in range(n)), trainer)
    return [tuple(m) for m in json.loads(tok.to_str())["model"]["merges"]]


def build() -> Tokenizer:
    letters: Counter[str] = Counter()
    signs: Counter[str] = Counter()
    spaced: Counter[str] = Counter()
    for text in sample_text():
        for word in split(text):
            bare = word.removeprefix(" ")
            if not bare or bare.isspace() or bare.isdigit():
                continue
            if bare[0].isalpha():
                if not (len(bare) > 1 and bare.isupper()):  # capitals are spelled letter by letter
                    letters[bare] += 1
                    if word != bare:
                        spaced[bare] += 1
            elif "\n" not in word:
                signs[word] += 1
    # a word everybody uses counts no more than enough to become one piece: rare words need pieces too
    letters = Counter({w: min(n, 3000) for w, n in letters.items()})
    merges = learn(letters, LETTER_MERGES) + learn(signs, SIGN_MERGES)
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    common = [
        w for w, _ in spaced.most_common() if w in vocab and w.isascii() and (len(w) > 2 or w in ENGLISH and len(w) > 1)
    ]
    whole = common[:SPACED_WORDS]
    for word in whole:
        if SPACE + word not in vocab:
            merges.append((SPACE, word))
            vocab[SPACE + word] = len(vocab)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS])
    return tok


def save(tok: Tokenizer, folder: Path) -> None:
    """`tokenizer.json`, `tokenizer_config.json` and the template, as a Hugging Face folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        (Path(__file__).with_name("chat_template.jinja")).read_text().removesuffix("\n")
    )
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {str(t["id"]): {k: t[k] for k in keys} for t in json.loads(tok.to_str())["added_tokens"]}
    config = {
        "added_tokens_decoder": added,
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": CONTEXT,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
