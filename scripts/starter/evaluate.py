"""Offline evaluation: the questions of `scripts/eval-starter`, answered by a torch checkpoint in batches."""

from __future__ import annotations

import json
from collections import defaultdict

from tokenizers import Tokenizer

from model import StarterModel
from prompt import END_OF_TEXT, IM_END, Encoder
from skills import Reply, Sample

Scores = dict[str, dict[str, tuple[int, int]]]
LIMIT, BATCH = 280, 40


def parse(text: str) -> Reply:
    """Takes a raw answer apart as a server would."""
    reasoning = ""
    if text.startswith("<think>") and "</think>" in text:
        reasoning, text = text.removeprefix("<think>").split("</think>", 1)
    plain, *parts = text.split("<tool_call>")
    calls = []
    for part in parts:
        try:
            call = json.loads(part.split("</tool_call>")[0])
            calls.append((call["name"], call["arguments"]))
        except (ValueError, KeyError, TypeError):
            plain = text  # not a call: show it as it is
    return Reply(plain.strip(), reasoning.strip(), calls)


def answers(model: StarterModel, tokenizer: Tokenizer, samples: list[Sample]) -> list[str]:
    """Greedy answers, as raw text, in the order of the samples."""
    encoder = Encoder(tokenizer)
    stop = {tokenizer.token_to_id(t) for t in (IM_END, END_OF_TEXT)}
    prompts = [encoder.prompt(s.messages, s.tools, s.thinking) for s in samples]
    order = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
    out = [""] * len(samples)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        for i, ids in zip(chosen, model.generate([prompts[i] for i in chosen], stop, LIMIT)):
            out[i] = tokenizer.decode(ids, skip_special_tokens=False)
    return out


def score(model: StarterModel, tokenizer: Tokenizer, samples: list[Sample], show_failures: int = 0) -> Scores:
    """Right answers and questions by skill and sub-skill."""
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    shown: dict[str, int] = defaultdict(int)
    for sample, text in zip(samples, answers(model, tokenizer, samples)):
        right = sample.check(parse(text))
        cell = counts[sample.skill][sample.sub]
        cell[0] += right
        cell[1] += 1
        if not right and shown[sample.sub] < show_failures:
            shown[sample.sub] += 1
            print(
                f"[{sample.skill} / {sample.sub}] {sample.messages[-1]['content']!r}\n    wanted {sample.expected!r}\n    got    {text!r}"
            )
    return {skill: {sub: (right, asked) for sub, (right, asked) in subs.items()} for skill, subs in counts.items()}


def report(scores: Scores) -> str:
    """One line per skill."""
    lines = []
    for skill, subs in scores.items():
        right, asked = (sum(c[i] for c in subs.values()) for i in (0, 1))
        parts = "  ".join(f"{sub} {r}/{n}" for sub, (r, n) in subs.items())
        lines.append(f"  {skill:14} {100 * right / asked:5.1f} %   {parts}")
    return "\n".join(lines)
