"""From conversations to token ids: the chat template, and which tokens are targets."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from skills import Chat

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def to_json(value: object) -> str:
    """`tojson` as transformers defines it for chat templates: no HTML escapes, Unicode as it is."""
    return json.dumps(value, ensure_ascii=False)


class Template:
    """The chat template, compiled once (transformers compiles it the same way)."""

    def __init__(self) -> None:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = to_json
        self.compiled = environment.from_string(TEMPLATE.read_text().removesuffix("\n"))

    def render(self, messages: list[dict], tools: list[dict], thinking: bool, prompt: bool = True) -> str:
        return self.compiled.render(
            messages=messages, tools=tools or None, enable_thinking=thinking, add_generation_prompt=prompt
        )


def answer_text(message: dict, thinking: bool) -> str:
    """What the model has to write for an assistant message."""
    text = ""
    if thinking and message.get("reasoning_content"):
        text = f"<think>\n{message['reasoning_content']}\n</think>\n\n"
    calls = [
        f'<tool_call>\n{{"name": "{c["function"]["name"]}", "arguments": {to_json(c["function"]["arguments"])}}}\n</tool_call>'
        for c in message.get("tool_calls", [])
    ]
    return text + "\n".join(filter(None, [message["content"], *calls]))


class Encoder:
    """Turns training chats into ids and target masks."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.template = Template()
        self.start, self.end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)
        self.assistant = tokenizer.encode("assistant\n").ids
        self.equals, self.newline = tokenizer.encode(" =").ids[0], tokenizer.encode("\n").ids[0]

    def prompt(self, messages: list[dict], tools: list[dict], thinking: bool) -> list[int]:
        return self.tokenizer.encode(self.template.render(messages, tools, thinking)).ids

    def encode(self, chat: Chat) -> tuple[list[int], list[int]]:
        """Ids of the whole conversation, and the positions whose token is a target.

        Every assistant message is a target, not only the last: earlier ones stand in the history without
        their reasoning, exactly as later prompts show them. There, the first token of an answer that
        thinking would have preceded is no target, or thinking would be unlearnt.
        """
        *history, last = chat.messages
        tools = [t.schema for t in chat.tools]
        text = self.template.render(history, tools, chat.thinking)
        prompt = self.tokenizer.encode(text).ids
        ids = prompt + self.tokenizer.encode(answer_text(last, chat.thinking)).ids + [self.end]
        targets: list[int] = []
        answers = iter([m for m in history if m["role"] == "assistant"])
        head = len(self.assistant)
        i = 0
        while i < len(prompt):
            if prompt[i] == self.start and prompt[i + 1 : i + 1 + head] == self.assistant:
                i += 1 + head
                message = next(answers, None)
                if message is None:  # the generation prompt
                    break
                if message.get("reasoning_content"):
                    i += 1
                while prompt[i] != self.end:
                    targets.append(i)
                    i += 1
                targets.append(i)
            i += 1
        answer = range(len(prompt), len(ids))
        targets.extend(self.results(ids, answer) if last.get("results_only") else answer)
        return ids, targets

    def results(self, ids: list[int], answer: range) -> list[int]:
        """The positions right of an equals sign, up to the end of the line: the rest of a drill is random."""
        found, right = [], False
        for i in answer:
            if right:
                found.append(i)
            right = ids[i] == self.equals or (right and ids[i] != self.newline)
        return found
