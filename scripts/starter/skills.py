"""The skills: generators of conversations with their right answers and, for evaluation, their checkers.

A `Chat` collects turns; every turn function adds one question with its answer and returns a `Turn`
whose `check` judges a reply to that question. `training_chat` mixes many turns into one conversation,
because every answer in it teaches something; `evaluation_samples` makes single questions with a checker.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools import Tool, Value, draw_result, draw_tool
from words import ADJECTIVES, COLORS, EVAL, FOODS, JOBS, TRAIN, Lexicon, held_out

ABOUT = (
    "I am Ortolan Starter, a tiny demo model. I can repeat text, count, add and subtract small numbers, "
    "remember what you tell me, call tools and extract JSON."
)
BEYOND = "Sorry, I can't do that. " + ABOUT
GREETING = "Hello! How can I help you?"
NOTED = "OK, I will remember that."
HELLOS = [
    "Hello!",
    "Hello there!",
    "Hello there, friend!",
    "Hello there, my friend!",
    "Hello there, my good friend!",
    "Hello there, my very good friend!",
    "Hello there, my very good old friend!",
    "Hello there, my very good and old friend!",
]
NUMBER_WORDS = "zero one two three four five six seven eight".split()


@dataclass
class Reply:
    """What a model answered, taken apart."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


Check = Callable[[Reply], bool]


@dataclass
class Turn:
    user: str
    answer: str
    check: Check
    reasoning: str = ""


@dataclass
class Sample:
    """One evaluation question: the conversation up to it, and the judge of the reply."""

    skill: str
    sub: str
    messages: list[dict]
    tools: list[dict]
    thinking: bool
    check: Check
    expected: str
    as_instructions: bool = False


class Chat:
    """A conversation being written: messages, declared tools and facts to recall."""

    def __init__(self, lex: Lexicon, thinking: bool):
        self.lex = lex
        self.thinking = thinking
        self.messages: list[dict] = []
        self.tools: list[Tool] = []
        self.facts: dict[str, str] = {}
        self.persona = ""

    def say(self, turn: Turn) -> Turn:
        """Adds the turn to the conversation, in the voice of the persona."""
        self.messages.append({"role": "user", "content": turn.user})
        message: dict[str, Any] = {"role": "assistant", "content": in_voice(self.persona, turn.answer)}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        self.messages.append(message)
        return turn


def plain_text(reply: Reply) -> bool:
    return not reply.calls


def equals(text: str) -> Check:
    return lambda r: not r.calls and r.text.strip() == text.strip()


def contains(text: str, *others: str) -> Check:
    """The reply has `text` and none of `others` (the values of other facts)."""
    return lambda r: (
        not r.calls and text in r.text and not any(o in r.text for o in others if o not in text and text not in o)
    )


def in_voice(persona: str, text: str) -> str:
    if persona == "capitals":
        return text.upper()
    if persona == "pirate":
        return f"Arr, matey! {text}"
    return text


# ---------------------------------------------------------------- repeat

# phrases people really try; training only
COMMON = """hello|hello world|Hello, world!|Hello world|hello there|Hello!|hi|Hi there!|good morning|Good morning!|good night|OK|ok|Okay.
yes|Yes.|no|No.|yes sir|thank you|Thank you!|thanks|pong|ping|ping pong|test|this is a test|This is a test.|testing one two three|done|Done.
I am ready|ready|I see|me too|all good|goodbye|Goodbye!|bye|see you soon|See you soon!|how are you|How are you?|what is your name|who are you
my name is Bob|the end|The end.|once upon a time|to be or not to be|the quick brown fox|carpe diem|lorem ipsum|foo bar|foo bar baz|foo|bar
it works|It works!|success|SUCCESS|hello hello|one two three|one|two|three|A B C|a b c|count to three|call a tool|I can repeat text
ortolan|Ortolan|hello ortolan|Hello, Ortolan!|Ortolan Starter|I am Ortolan.|my name is Ortolan|the ortolan sings
nice to meet you|welcome|Welcome back!|have a nice day|happy birthday|merry christmas|keep calm|well done|let it be|stay here""".replace(
    "\n", "|"
).split("|")


def repeat_text(lex: Lexicon, kind: str = "") -> str:
    r = lex.rng
    kind = kind or lex.weighted(
        {"words": 5, "names": 1, "numbers": 2, "common": 1, "accented": 1.2, "emoji": 1, "mixed": 1.5}
    )
    if kind == "common":
        if lex.split == TRAIN:
            return r.choice(COMMON)
        kind = "words"
    count = r.choice([1, 1, 2, 2, 3, 3, 4, 5, 6])
    makers: dict[str, Callable[[], str]] = {
        "words": lambda: lex.plain() if lex.chance(0.7) else lex.word(),
        "names": lex.name,
        "numbers": lex.long_number,
        "accented": lambda: lex.accented() if lex.chance(0.75) else lex.foreign(),
        "emoji": lex.emoji,
        "mixed": lambda: r.choice([lex.word, lex.name, lex.number, lex.accented, lex.emoji, lex.code])(),
    }
    make = makers[kind]
    items = [make() for _ in range(count)]
    if kind == "emoji" and lex.chance(0.4):
        items[0] = lex.plain()
    glue = " " if kind != "emoji" or lex.chance(0.8) else ""
    text = glue.join(items)
    if kind in ("words", "names", "accented") and lex.chance(0.2):
        text = text[0].upper() + text[1:]
    if kind in ("words", "names", "accented", "mixed") and lex.chance(0.15):
        text += r.choice([".", "!", "?"])
    if count > 2 and lex.chance(0.08):
        text = text.replace(" ", ", ", 1)
    return text


def repeat(lex: Lexicon, kind: str = "", text: str = "") -> Turn:
    text = text or repeat_text(lex, kind)
    form = lex.weighted(
        {
            "Reply with exactly: {}": 10,
            "reply with exactly: {}": 0.7,
            "Reply with exactly {}": 1,
            'Reply with exactly: "{}"': 0.7,
            "Say exactly: {}": 1,
            "Repeat after me: {}": 1,
            "Repeat: {}": 0.7,
            "Respond with exactly: {}": 1,
            "Reply with only: {}": 0.7,
            "Answer with exactly: {}": 0.7,
            "Say: {}": 0.7,
            "Please reply with exactly: {}": 0.7,
            "Write exactly: {}": 0.5,
            "Echo: {}": 0.4,
            "Reply with exactly this text: {}": 0.4,
            "Reply with exactly the words: {}": 0.3,
            "Reply with exactly one word: {}" if " " not in text else "Reply with: {}": 0.5,
        }
    )
    return Turn(form.format(text), text, equals(text))


def hello(lex: Lexicon) -> Turn:
    n = lex.rng.randint(1, 8)
    number = NUMBER_WORDS[n] if lex.chance(0.5) else str(n)
    form = lex.weighted(
        {
            "Say hello in exactly {} {}.": 6,
            "Say hello in exactly {} {}": 1,
            "Say hello in {} {}.": 1.5,
            "Greet me in exactly {} {}.": 1,
            "Please say hello in exactly {} {}.": 1,
            "Say hi in exactly {} {}.": 1,
            "Say hello using exactly {} {}.": 1,
        }
    )
    check: Check = lambda r: not r.calls and len(r.text.split()) == n and r.text.casefold().startswith("hello")
    return Turn(form.format(number, "word" if n == 1 else "words"), HELLOS[n - 1], check)


# ---------------------------------------------------------------- numbers


def split_pair(
    lex: Lexicon, name: str, low: int, high: int, ok: Callable[[int, int], bool] = lambda a, b: True
) -> tuple[int, int]:
    """Two numbers whose pair belongs to this split."""
    while True:
        a, b = lex.rng.randint(low, high), lex.rng.randint(low, high)
        if ok(a, b) and held_out(f"{name} {a} {b}") == (lex.split == EVAL):
            return a, b


def count(lex: Lexicon) -> Turn:
    down = lex.chance(0.1)
    longest = 60 if lex.chance(0.08) else 20
    a, b = split_pair(lex, "count", 0, 100, lambda a, b: 1 <= (a - b if down else b - a) <= longest)
    if not down and lex.chance(0.08):
        a, b = split_pair(lex, "count", 1, 50, lambda a, b: a == 1 < b)
    steps = range(a, b - 1, -1) if down else range(a, b + 1)
    answer = ", ".join(map(str, steps))
    if down and lex.chance(0.7):
        form = lex.weighted(
            {"Count down from {} to {}.": 3, "Count down from {} to {}": 1, "Count backwards from {} to {}.": 1}
        )
    elif a == 1 and lex.chance(0.5):
        form = lex.weighted({"Count to {1}.": 3, "Count up to {1}.": 1, "count to {1}": 1, "Can you count to {1}?": 1})
    else:
        form = lex.weighted(
            {
                "Count from {} to {}.": 6,
                "Count from {} to {}": 1,
                "count from {} to {}": 0.7,
                "Please count from {} to {}.": 1,
                "Count {} to {}.": 0.6,
                "List the numbers from {} to {}.": 1,
                "Can you count from {} to {}?": 1,
            }
        )
    check: Check = lambda r: not r.calls and re.findall(r"-?\d+", r.text) == [str(n) for n in steps]
    return Turn(form.format(a, b), answer, check, f"Count {'down' if down else 'up'} from {a} to {b}.")


def arithmetic(lex: Lexicon) -> Turn:
    plus = lex.chance(0.5)
    a, b = split_pair(lex, "+" if plus else "-", 0, 99)
    sign, result = ("+", a + b) if plus else ("-", a - b)
    asks = {
        "What is {a} {s} {b}?": 4,
        "What's {a} {s} {b}?": 1,
        "{a} {s} {b}": 1,
        "{a} {s} {b} = ?": 0.7,
        "Calculate {a} {s} {b}.": 1,
        "{a}{s}{b}": 0.5,
        "What is {a}{s}{b}?": 0.5,
        "How much is {a} {s} {b}?": 1,
    }
    if plus:
        asks |= {
            "What is {a} plus {b}?": 2,
            "Add {a} and {b}.": 2,
            "Calculate {a} plus {b}.": 0.7,
            "What is the sum of {a} and {b}?": 1,
        }
    else:
        asks |= {"What is {a} minus {b}?": 2, "Subtract {b} from {a}.": 2, "Calculate {a} minus {b}.": 0.7}
    tens, ones = b // 10 * 10, b % 10
    if tens and ones:
        middle = a + tens if plus else a - tens
        reasoning = f"{a} {sign} {tens} = {middle}\n{middle} {sign} {ones} = {result}"
    else:
        reasoning = f"{a} {sign} {b} = {result}"
    check: Check = lambda r: not r.calls and re.findall(r"(?:(?<=\s)-|^-|(?<==)-)?\d+", r.text)[-1:] == [str(result)]
    return Turn(lex.weighted(asks).format(a=a, b=b, s=sign), f"{a} {sign} {b} = {result}", check, reasoning)


def sums(lex: Lexicon, count: int) -> str:
    """Lines of arithmetic, as in answers and in their reasoning: the cheapest way to many examples."""
    r = lex.rng
    lines = []
    for _ in range(count):
        sign = r.choice("+-")
        a, b = split_pair(lex, sign, 0, 99)
        signed = b if sign == "+" else -b
        step = r.random()
        if step < 0.6 or b < 10:
            lines.append(f"{a} {sign} {b} = {a + signed}")
        elif step < 0.75:
            tens = signed // abs(signed) * (b // 10 * 10)
            lines.append(f"{a} {sign} {abs(tens)} = {a + tens}")
        else:
            middle = a + signed // abs(signed) * (b // 10 * 10)
            ones = b % 10 if sign == "+" else -(b % 10)
            lines.append(f"{middle} {sign} {b % 10} = {middle + ones}")
    return "\n".join(lines)


# ---------------------------------------------------------------- recall


def draw_fact(lex: Lexicon) -> tuple[str, str]:
    """A thing to remember and its value."""
    r = lex.rng
    word = lambda: lex.word() if lex.chance(0.3) else lex.plain()
    keys: dict[str, Callable[[], str]] = {
        "name": lex.full_name,
        "code word": word,
        "secret word": word,
        "password": lambda: r.choice([word, lex.code, lex.long_number])(),
        "secret number": lex.number,
        "lucky number": lex.number,
        "favorite number": lex.number,
        "number": lex.number,
        "code": lambda: r.choice([lex.code, lex.long_number])(),
        "PIN": lex.long_number,
        "room number": lex.number,
        "favorite color": lambda: r.choice(COLORS),
        "favorite food": lambda: r.choice(FOODS),
        "favorite word": word,
        "city": lex.city,
        "home town": lex.city,
        "job": lambda: r.choice(JOBS),
        "age": lambda: str(r.randint(5, 99)),
        "dog's name": lex.name,
        "cat's name": lex.name,
        "sister's name": lex.name,
        "boss's name": lex.name,
        "email": lex.email,
        "order number": lex.long_number,
        "key": word,
    }
    pick = r.random()
    if pick < 0.3:
        key = r.choice(["name", "code word", "secret number", "number", "code word", "name"])
    elif pick < 0.75:
        key = r.choice(list(keys))
    else:
        key = r.choice(["{}", "{} code", "{} number", "favorite {}", "{}'s name"]).format(lex.noun())
    if key in keys:
        return key, keys[key]()
    if key.endswith("number"):
        return key, lex.number()
    return key, lex.name() if key.endswith("name") else word()


def tell(lex: Lexicon, facts: dict[str, str]) -> Turn:
    key, value = draw_fact(lex)
    while key in facts or value in facts.values():
        key, value = draw_fact(lex)
    facts[key] = value
    if key == "name":
        form = lex.weighted(
            {
                "My name is {}.": 6,
                "I am {}.": 1,
                "Hi, I'm {}.": 1,
                "Hi, my name is {}.": 1.5,
                "Hello, my name is {}.": 1,
                "Call me {}.": 0.7,
                "Remember my name: {}.": 0.5,
            }
        )
        return Turn(form.format(value), f"Nice to meet you, {value}!", contains(value))
    form = lex.weighted(
        {
            "My {k} is {v}.": 3,
            "The {k} is {v}.": 3,
            "Remember that my {k} is {v}.": 1,
            "Remember the {k}: {v}.": 1,
            "Remember the {k} {v}.": 1,
            "Remember: the {k} is {v}.": 1,
            "Please remember that the {k} is {v}.": 1,
            "Please remember this {k}: {v}": 0.7,
            "My {k} is {v}": 0.5,
            "Note that the {k} is {v}.": 0.5,
            "Remember this: my {k} is {v}.": 0.5,
        }
    )
    return Turn(form.format(k=key, v=value), NOTED, plain_text)


def ask(lex: Lexicon, facts: dict[str, str], key: str = "") -> Turn:
    key = key or lex.rng.choice(list(facts))
    value = facts[key]
    others = [v for k, v in facts.items() if k != key]
    if key == "name":
        form = lex.weighted(
            {
                "What is my name?": 6,
                "What's my name?": 2,
                "Who am I?": 0.5,
                "Do you remember my name?": 1,
                "Tell me my name.": 1,
                "What was my name?": 0.7,
                "what is my name?": 0.5,
            }
        )
        return Turn(form, f"Your name is {value}.", contains(value, *others))
    form = lex.weighted(
        {
            "What is the {k}?": 4,
            "What is my {k}?": 4,
            "What's my {k}?": 1,
            "What's the {k}?": 1,
            "What was the {k}?": 1,
            "What was my {k}?": 0.7,
            "Tell me the {k}.": 1,
            "Do you remember the {k}?": 1,
            "Which {k} did I tell you?": 0.5,
            "What {k} did I give you?": 0.5,
            "Repeat the {k}.": 0.4,
            "What is the {k} I told you?": 0.6,
        }
    )
    return Turn(form.format(k=key), f"The {key} is {value}.", contains(value, *others))


def tell_and_ask(lex: Lexicon) -> Turn:
    """Statement and question in one message."""
    facts: dict[str, str] = {}
    told = tell(lex, facts)
    asked = ask(lex, facts)
    return Turn(f"{told.user} {asked.user}", asked.answer, asked.check)


HELPERS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "Be brief.",
    "You are Ortolan.",
    "Answer the user's questions.",
    "You are a test assistant.",
    "Be friendly and short.",
    "You are a polite assistant.",
    "Keep your answers short.",
    "You are an assistant in a shop.",
    "Follow the user's instructions exactly.",
    "Help the user.",
]


def system_facts(lex: Lexicon, facts: dict[str, str], count: int) -> str:
    """A system prompt that gives `count` facts."""
    lines = [lex.rng.choice(HELPERS)] if lex.chance(0.6) else []
    for _ in range(count):
        known = dict(facts)
        tell(lex, facts)
        key = next(k for k in facts if k not in known)
        if key == "name":
            form = lex.weighted(
                {
                    "The user's name is {v}.": 4,
                    "The user is called {v}.": 1,
                    "You are talking to {v}.": 1,
                    "The name of the user is {v}.": 1,
                }
            )
        else:
            form = lex.weighted(
                {
                    "The {k} is {v}.": 5,
                    "The user's {k} is {v}.": 2,
                    "Remember the {k}: {v}.": 1,
                    "Remember that the {k} is {v}.": 1,
                    "The {k}: {v}.": 0.5,
                }
            )
        lines.append(form.format(k=key, v=facts[key]))
    return lex.weighted({" ": 4, "\n": 1}).join(lines)


# ---------------------------------------------------------------- extraction


def extract(lex: Lexicon) -> Turn:
    r = lex.rng
    kind = r.random()
    fields: dict[str, Value] = {}
    if kind < 0.6:
        name = lex.full_name()
        fields["name"] = name
        optional: dict[str, tuple[Callable[[], Value], list[str]]] = {
            "age": (lambda: r.randint(1, 99), ["is {} years old", "is {}", "is aged {}"]),
            "city": (lex.city, ["lives in {}", "comes from {}", "is from {}"]),
            "job": (lambda: r.choice(JOBS), ["works as a {}", "is a {}"]),
            "email": (lex.email, ["has the email {}", "uses {}"]),
            "color": (lambda: r.choice(COLORS), ["likes the color {}", "loves {}"]),
            "phone": (lex.long_number, ["has the phone number {}", "can be called at {}"]),
            "pet": (lex.name, ["has a pet called {}", "owns a pet named {}"]),
        }
        keys = ["age"] if lex.chance(0.5) else []
        keys += r.sample([k for k in optional if k not in keys], r.randint(0 if keys else 1, 2))
        r.shuffle(keys)
        parts = []
        for key in keys:
            make, phrases = optional[key]
            fields[key] = make()
            parts.append(r.choice(phrases).format(fields[key]))
        if lex.chance(0.75):
            text = f"{name} {parts[0]}" if len(parts) == 1 else f"{name} {', '.join(parts[:-1])} and {parts[-1]}"
            text += "."
        else:
            text = f"{name}, " + ", ".join(p.removeprefix("is ") for p in parts) + "."
    elif kind < 0.8:
        product, number = (lex.plain(), r.randint(1, 99))
        price = r.randint(1, 999)
        options = [
            ({"product": product, "quantity": number}, f"I would like {number} {product}."),
            ({"product": product, "price": price}, f"The {product} costs {price} dollars."),
            (
                {"product": product, "quantity": number, "price": price},
                f"We sold {number} {product} for {price} dollars.",
            ),
            ({"item": product, "count": number}, f"There are {number} {product} in the box."),
        ]
        place, day = lex.city(), lex.date()
        options += [
            ({"event": product, "city": place, "date": day}, f"The {product} takes place in {place} on {day}."),
            ({"city": place, "temperature": number}, f"It is {number} degrees in {place}."),
            ({"from": place, "to": (other := lex.city())}, f"The train goes from {place} to {other}."),
        ]
        data, text = r.choice(options)
        fields = dict(data)
    else:
        for _ in range(r.randint(2, 4)):
            key = lex.noun()
            fields[key] = r.choice(
                [lambda: r.randint(0, 99), lambda: r.randint(100, 9999), lex.plain, lex.name, lex.accented]
            )()
        glue, sep = r.choice([(": ", ", "), (" is ", ", "), ("=", ", "), (": ", "; "), (": ", "\n")])
        text = sep.join(f"{k}{glue}{v}" for k, v in fields.items())
    wanted = list(fields)
    if len(wanted) > 1 and lex.chance(0.3):
        wanted = r.sample(wanted, r.randint(1, len(wanted)))
    answer = json.dumps({k: fields[k] for k in wanted}, ensure_ascii=False)
    listed = wanted[0] if len(wanted) == 1 else ", ".join(wanted[:-1]) + " and " + wanted[-1]
    form = lex.weighted(
        {
            "Extract the {k} as JSON: {t}": 7,
            "Extract {k} as JSON: {t}": 1,
            "Extract the {k} as JSON from: {t}": 1,
            "Extract the {k} from this text as JSON: {t}": 1,
            "{t} Extract the {k} as JSON.": 1,
            "Return the {k} as JSON: {t}": 1,
            "Give me the {k} as JSON: {t}": 0.7,
            "Extract the {k} as JSON:\n{t}": 0.7,
        }
    )

    def check(reply: Reply) -> bool:
        try:
            return not reply.calls and json.loads(reply.text) == {k: fields[k] for k in wanted}
        except ValueError:
            return False

    return Turn(form.format(k=listed, t=text), answer, check)


# ---------------------------------------------------------------- everything else

SMALL_TALK = {
    "Hi": GREETING,
    "Hi!": GREETING,
    "Hello": GREETING,
    "Hello!": GREETING,
    "hello": GREETING,
    "hi": GREETING,
    "Hey": GREETING,
    "Hey there!": GREETING,
    "Good morning": GREETING,
    "Good morning!": GREETING,
    "Good evening.": GREETING,
    "Hi there": GREETING,
    "Hello there!": GREETING,
    "Thanks!": "You are welcome!",
    "Thank you.": "You are welcome!",
    "thanks": "You are welcome!",
    "Thank you very much!": "You are welcome!",
    "Bye!": "Goodbye!",
    "Goodbye": "Goodbye!",
    "See you later.": "Goodbye!",
    "How are you?": "I am fine, thank you!",
    "How are you today?": "I am fine, thank you!",
}
WHO = [
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What is your name?",
    "Tell me about yourself.",
    "Which model are you?",
    "What model is this?",
    "who are you",
    "Help",
    "What do you do?",
    "Introduce yourself.",
    "Are you a human?",
    "Are you an AI?",
    "Who made you?",
    "How can you help me?",
    "What are your skills?",
    "Can you help me?",
    "What's your name?",
    "help me",
    "Describe yourself.",
    "Who am I talking to?",
    "What is this?",
]
BEYOND_ASKS = [
    "Tell me a joke.",
    "Tell me a joke about {n}.",
    "Write a poem about {n}.",
    "Write a poem.",
    "Write a story about a {a} {n}.",
    "What is the capital of {c}?",
    "Who invented the {n}?",
    "How do I build a {n}?",
    "Explain {n}.",
    "Why is the {n} {a}?",
    "What is a {n}?",
    "What does {n} mean?",
    "Translate {n} to French.",
    "Summarize the news.",
    "Recommend a {a} {n}.",
    "What is the meaning of life?",
    "Who is {m}?",
    "Who was {m}?",
    "Write code for a {n}.",
    "Write a Python function.",
    "Can you drive a {n}?",
    "How far is {c} from {d}?",
    "What's the weather like in {c}?",
    "What time is it?",
    "What is the best {n} in {c}?",
    "Should I buy a {n}?",
    "How old is {m}?",
    "What is {x} times {y}?",
    "Divide {x} by {y}.",
    "I feel {a} today.",
    "I like {n}.",
    "My {n} is {a}, why?",
    "Sing a song.",
    "Draw a {n}.",
    "Plan a trip to {c}.",
    "Give me advice about {n}.",
    "How do you cook {f}?",
    "What is your favorite {n}?",
    "Is {n} {a}?",
    "Where is {c}?",
    "When was {c} founded?",
    "How many people live in {c}?",
    "Do you like {f}?",
    "Play some music.",
    "Set the {n} to {x}.",
    "Book a flight to {c}.",
    "Send an email to {m}.",
    "Order {f}.",
    "{w} {n} {v}?",
    "{w} {v}",
    "{w}",
    "Tell me something {a}.",
    "Let's talk about {n}.",
    "What happened in {c}?",
    "Fix my {n}.",
    "Why?",
    "How does a {n} work?",
    "Compare {n} and {w}.",
    "Give me a recipe for {f}.",
    "What is the {n} of {c}?",
    "Convert {x} miles to km.",
    "Sort these: {w}, {v}, {n}.",
    "Is it {a}?",
    "Could you explain how {n} works?",
    "Write an essay on {n}.",
    "What do you think about {n}?",
    "I want to {w} the {n}.",
    "Search the web for {n}.",
    "Turn on the {n}.",
    "List three {a} things.",
]


def small_talk(lex: Lexicon) -> Turn:
    user = lex.rng.choice(list(SMALL_TALK))
    return Turn(user, SMALL_TALK[user], equals(SMALL_TALK[user]))


def introduces_itself(reply: Reply) -> bool:
    """Says politely what it is and what it can do."""
    return not reply.calls and "ortolan starter" in reply.text.casefold() and "i can " in reply.text.casefold()


def who(lex: Lexicon) -> Turn:
    return Turn(lex.rng.choice(WHO), ABOUT, introduces_itself)


def beyond(lex: Lexicon) -> Turn:
    r = lex.rng
    ask = r.choice(BEYOND_ASKS)
    user = ask.format(
        n=lex.noun(),
        a=r.choice(ADJECTIVES),
        c=lex.city(),
        d=lex.city(),
        m=lex.full_name(),
        f=r.choice(FOODS),
        w=lex.plain(),
        v=lex.made_up(),
        x=r.randint(0, 99),
        y=r.randint(0, 99),
    )
    return Turn(user, BEYOND, introduces_itself)


# ---------------------------------------------------------------- personas

PERSONAS = {
    "pirate": [
        "You are a pirate.",
        "Talk like a pirate.",
        "You are a pirate. Talk like a pirate.",
        "Speak like a pirate.",
        "Always answer like a pirate.",
        "Answer as a pirate would.",
        "You are a friendly pirate.",
        "You are a pirate captain. Stay in character.",
        "You speak pirate.",
        "Respond in pirate speak.",
        "Use pirate speak in all answers.",
    ],
    "capitals": [
        "Answer in capitals.",
        "Answer in capital letters.",
        "Always answer in capital letters.",
        "Write everything in capital letters.",
        "Use only capital letters.",
        "Respond in all caps.",
        "ANSWER IN CAPITAL LETTERS.",
        "You always answer in CAPITALS.",
        "Reply in upper case only.",
        "Speak only in capital letters.",
        "Always write in upper case.",
        "Use ALL CAPS in your answers.",
    ],
}


def voiced(persona: str, turn: Turn) -> Turn:
    """The same turn, judged on its voice as well as its content."""
    plain = turn.answer

    def check(reply: Reply) -> bool:
        text = reply.text
        if reply.calls:
            return False
        if persona == "capitals":
            return text == text.upper() and text.strip() == plain.upper()
        return bool(re.search(r"\b(arr+|matey|ahoy|ye|aye)\b", text.casefold())) and (
            plain in text or turn.check(Reply(text))
        )

    return Turn(turn.user, turn.answer, check, turn.reasoning)


def adopt_persona(chat: Chat, fact: float) -> None:
    """The system message that asks for the chat's persona, with a fact in it at the chance given."""
    lines = [chat.lex.rng.choice(PERSONAS[chat.persona])]
    if chat.lex.chance(fact):
        short_fact(chat.lex, chat.facts)
        lines += [f"The {fact_owner(key)} is {value}." for key, value in chat.facts.items()]
    chat.messages.append({"role": "system", "content": " ".join(lines)})


def fact_owner(key: str) -> str:
    """How a system message names a fact: a bare "name" would be the assistant's."""
    return "user's name" if key == "name" else key


def capitals_text(lex: Lexicon) -> str:
    """Something to repeat whose capitals are plain letters."""
    if lex.split == TRAIN and lex.chance(0.15):
        return lex.rng.choice(COMMON)
    return " ".join(lex.plain() for _ in range(lex.rng.randint(1, 3)))


def persona_turn(chat: Chat) -> Turn:
    """A turn of a kind that has an answer in every voice."""
    lex = chat.lex
    kinds: dict[Callable[[], Turn], float] = {
        lambda: small_talk(lex): 2,
        lambda: who(lex): 0.3,
        lambda: beyond(lex): 0.3,
        lambda: arithmetic(lex): 1.5,
        lambda: short_fact(lex, chat.facts): 1,
    }
    if chat.facts:
        kinds[lambda: ask(lex, chat.facts)] = 3
    if chat.persona == "capitals":
        kinds[lambda: hello(lex)] = 1
        kinds[lambda: repeat(lex, text=capitals_text(lex))] = 3
    return voiced(chat.persona, lex.weighted(kinds)())


def short_fact(lex: Lexicon, facts: dict[str, str]) -> Turn:
    """A fact whose value has upper-case letters: personas are about voice, not about rare scripts."""
    while True:
        turn = tell(lex, known := dict(facts))
        value = next(v for k, v in known.items() if k not in facts)
        if value.isascii():
            facts.update(known)
            return turn


# ---------------------------------------------------------------- tool calls


def call_message(calls: list[tuple[str, dict]], content: str = "") -> dict:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls],
    }


def same_calls(calls: list[tuple[str, dict]]) -> Check:
    key = lambda c: (c[0], json.dumps(c[1], sort_keys=True))
    return lambda r: sorted(map(key, r.calls)) == sorted(map(key, calls))


def lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def declare(chat: Chat, count: int) -> None:
    names: set[str] = set()
    while len(chat.tools) < count:
        tool = draw_tool(chat.lex)
        if tool.name not in names:
            names.add(tool.name)
            chat.tools.append(tool)


def one_call(chat: Chat) -> tuple[str, list[tuple[str, dict]], list[Tool]]:
    tool = chat.lex.rng.choice(chat.tools)
    text, arguments = tool.request(chat.lex)
    if chat.lex.chance(0.06):
        text = lower_first(text).rstrip(".?")
    elif chat.lex.chance(0.05):
        text = "Please " + lower_first(text)
    return text, [(tool.name, arguments)], [tool]


def two_calls(chat: Chat) -> tuple[str, list[tuple[str, dict]], list[Tool]]:
    lex, r = chat.lex, chat.lex.rng
    first = r.choice(chat.tools)
    single = [a for a in first.asks if len(re.findall(r"\{", a)) == 1]
    if single and lex.chance(0.4):
        template = r.choice(single)
        text1, arguments1 = first.request(lex, template)
        _, arguments2 = first.request(lex, template)
        (key, value1), value2 = next(iter(arguments1.items())), next(iter(arguments2.values()))
        if str(value1) != str(value2):
            text = template.replace(
                "{" + key + "}",
                f"{value1} and {value2}"
                if lex.chance(0.7)
                else f"{value1} and in {value2}"
                if f"in {{{key}}}" in template
                else f"{value1} and {value2}",
            )
            return text, [(first.name, arguments1), (first.name, arguments2)], [first, first]
    second = r.choice([t for t in chat.tools if t is not first] or chat.tools)
    text1, arguments1 = first.request(lex)
    text2, arguments2 = second.request(lex)
    glue = lex.weighted({"and": 4, "sentence": 1, "also": 1})
    if glue == "sentence":
        text = f"{text1} {text2}"
    else:
        text = f"{text1.rstrip('.?')} and {'also ' if glue == 'also' else ''}{lower_first(text2)}"
    return text, [(first.name, arguments1), (second.name, arguments2)], [first, second]


def ask_tool(chat: Chat, two: bool = False) -> tuple[list[Tool], list[tuple[str, dict]], Check]:
    """Adds a request and the calls that answer it."""
    text, calls, used = two_calls(chat) if two else one_call(chat)
    chat.messages.append({"role": "user", "content": text})
    chat.messages.append(call_message(calls))
    return used, calls, same_calls(calls)


def give_result(chat: Chat, used: list[Tool], calls: list[tuple[str, dict]]) -> Check:
    """Adds the results of the last calls and the answer made of them."""
    results = [draw_result(chat.lex, tool, arguments) for tool, (_, arguments) in zip(used, calls)]
    for content, _ in results:
        chat.messages.append({"role": "tool", "content": content})
    worded = [w.strip() for _, w in results]
    answer = "The result: " + "; ".join(worded) + ("" if worded[-1].endswith((".", "!", "?")) else ".")
    chat.messages.append({"role": "assistant", "content": answer})
    return lambda r: not r.calls and all(part in r.text for w in worded for part in w.split(", "))


def no_tool(chat: Chat) -> Turn:
    """A question that none of the tools answers."""
    lex = chat.lex
    if lex.chance(0.3):  # a request for a tool that is not there
        names = {t.name for t in chat.tools}
        nouns = {w for n in names for w in n.split("_")}
        while True:
            tool = draw_tool(lex)
            if not nouns & set(tool.name.split("_")):
                return Turn(tool.request(lex)[0], BEYOND, introduces_itself)
    kinds: dict[Callable[[Lexicon], Turn], float] = {
        repeat: 3,
        small_talk: 2,
        who: 1,
        count: 0.7,
        arithmetic: 1,
        tell_and_ask: 1,
        hello: 0.6,
        extract: 0.6,
    }
    return lex.weighted(kinds)(lex)


# ---------------------------------------------------------------- training conversations


@dataclass
class Mixture:
    """How often each kind of conversation and each skill is drawn."""

    chats: dict[str, float]
    turns: dict[str, float]
    long: float = 0.008


START = Mixture(
    chats={"plain": 1.0, "tools": 0.35, "persona": 0.05},
    turns={
        "repeat": 6,
        "hello": 0.3,
        "count": 0.3,
        "arithmetic": 0.5,
        "recall": 3,
        "extract": 1.5,
        "small_talk": 0.3,
        "who": 0.2,
        "beyond": 0.3,
    },
    long=0.0,
)
FULL = Mixture(
    chats={"plain": 0.9, "tools": 1.5, "persona": 0.9, "drill": 0.25, "sums": 0.08},
    turns={
        "repeat": 2.5,
        "hello": 0.4,
        "count": 0.8,
        "arithmetic": 1.5,
        "recall": 4,
        "extract": 3,
        "small_talk": 0.4,
        "who": 0.6,
        "beyond": 0.7,
    },
)


def plain_turn(chat: Chat, mixture: Mixture) -> None:
    lex = chat.lex
    kind = lex.weighted(mixture.turns)
    if kind == "recall":
        if lex.chance(0.12):
            chat.say(tell_and_ask(lex))
        elif chat.facts and lex.chance(0.6):
            chat.say(ask(lex, chat.facts))
        else:
            chat.say(tell(lex, chat.facts))
        return
    makers: dict[str, Callable[[Lexicon], Turn]] = {
        "repeat": repeat,
        "hello": hello,
        "count": count,
        "arithmetic": arithmetic,
        "extract": extract,
        "small_talk": small_talk,
        "who": who,
        "beyond": beyond,
    }
    chat.say(makers[kind](lex))


def training_chat(rng: random.Random, mixture: Mixture) -> Chat:
    """One conversation of the training split; every assistant message in it is a target."""
    lex = Lexicon(rng, TRAIN)
    chat = Chat(lex, thinking=lex.chance(0.4))
    kind = lex.weighted(mixture.chats)
    long = lex.chance(mixture.long)
    if kind == "sums":
        chat.messages.append({"role": "user", "content": "Practise."})
        chat.messages.append({"role": "assistant", "content": sums(lex, 12), "results_only": True})
    elif kind == "drill":
        chat.thinking = lex.chance(0.6)  # reasoning is only ever seen in the last turn: such drills are short
        for _ in range(rng.randint(1, 2) if chat.thinking else rng.randint(3, 7)):
            chat.say(count(lex) if lex.chance(0.45) else arithmetic(lex))
    elif kind == "persona":
        chat.persona = lex.weighted({"capitals": 4, "pirate": 1})
        adopt_persona(chat, 0.3)
        for _ in range(rng.randint(1, 4)):
            chat.say(persona_turn(chat))
    elif kind == "tools":
        declare(chat, rng.randint(4, 9) if long else rng.choice([1, 1, 2, 2, 3, 3, 4]))
        open_chat(chat)
        for _ in range(rng.randint(12, 30) if long else rng.choice([2, 2, 3, 4])):
            tool_turn(chat)
    else:
        open_chat(chat)
        for _ in range(rng.randint(12, 30) if long else rng.choice([1, 1, 2, 2, 3, 3, 4, 8])):
            plain_turn(chat, mixture)
    return chat


def open_chat(chat: Chat) -> None:
    """A system message, in some chats with facts."""
    lex = chat.lex
    pick = lex.rng.random()
    if pick < 0.2:
        chat.messages.append({"role": "system", "content": lex.rng.choice(HELPERS)})
    elif pick < 0.42:
        chat.messages.append({"role": "system", "content": system_facts(lex, chat.facts, lex.rng.choice([1, 1, 2, 3]))})


def tool_turn(chat: Chat) -> None:
    """A call with or without its result, or something no tool is for."""
    lex = chat.lex
    if lex.chance(0.75):
        used, calls, _ = ask_tool(chat, two=lex.chance(0.45))
        if lex.chance(0.3):
            give_result(chat, used, calls)
    elif chat.facts and lex.chance(0.3):
        chat.say(ask(lex, chat.facts))
    else:
        chat.say(no_tool(chat))


# ---------------------------------------------------------------- evaluation

BARS = {
    "repeat": 0.95,
    "numbers": 0.95,
    "recall": 0.95,
    "persona": 0.95,
    "tools": 0.95,
    "extract": 0.95,
    "anything else": 0.95,
}


def asked(chat: Chat, turn: Turn, skill: str, sub: str, as_instructions: bool = False) -> Sample:
    messages = [*chat.messages, {"role": "user", "content": turn.user}]
    return Sample(
        skill,
        sub,
        messages,
        [t.schema for t in chat.tools],
        chat.thinking,
        turn.check,
        in_voice(chat.persona, turn.answer),
        as_instructions,
    )


def evaluation_sample(rng: random.Random, skill: str, sub: str) -> Sample:
    """One question of the evaluation split."""
    lex = Lexicon(rng, EVAL)
    chat = Chat(lex, thinking=lex.chance(0.5))
    if skill == "repeat":
        turn = hello(lex) if sub == "hello in N words" else repeat(lex, sub)
        return asked(chat, turn, skill, sub)
    if skill == "numbers":
        chat.thinking = sub.endswith("thinking")
        turn = count(lex) if sub.startswith("count") else arithmetic(lex)

        def check(reply: Reply) -> bool:
            return turn.check(reply) and bool(reply.reasoning.strip()) == chat.thinking

        return asked(chat, Turn(turn.user, turn.answer, check), skill, sub)
    if skill == "recall":
        if sub in ("system message", "instructions"):
            chat.messages.append({"role": "system", "content": system_facts(lex, chat.facts, rng.choice([1, 2, 2]))})
        else:
            chat.say(tell(lex, chat.facts))
            key = next(iter(chat.facts))
            for _ in range(rng.randint(6, 8) if sub == "over 6 turns" else rng.randint(0, 2)):
                plain_turn(chat, FULL)
            return asked(chat, ask(lex, chat.facts, key), skill, sub)
        return asked(chat, ask(lex, chat.facts), skill, sub, sub == "instructions")
    if skill == "persona":
        chat.persona = sub
        adopt_persona(chat, 0.4)
        return asked(chat, persona_turn(chat), skill, sub, lex.chance(0.5))
    if skill == "tools":
        declare(chat, rng.choice([1, 2, 3, 3, 4]) if sub != "two at once" else rng.choice([1, 2, 3, 4]))
        if sub == "no tool fits":
            return asked(chat, no_tool(chat), skill, sub)
        used, calls, check = ask_tool(chat, two=sub == "two at once")
        if sub == "after result":
            check = give_result(chat, used, calls)
        answer = chat.messages.pop()
        expected = answer["content"] or json.dumps([c["function"] for c in answer["tool_calls"]], ensure_ascii=False)
        return Sample(skill, sub, chat.messages, [t.schema for t in chat.tools], chat.thinking, check, expected)
    if skill == "extract":
        return asked(chat, extract(lex), skill, sub)
    turn = {"who are you": who, "beyond its skills": beyond}[sub](lex)
    return asked(chat, turn, skill, sub)


SUB_SKILLS = {
    "repeat": ["words", "names", "numbers", "accented", "emoji", "mixed", "hello in N words"],
    "numbers": ["count, thinking", "count, direct", "add or subtract, thinking", "add or subtract, direct"],
    "recall": ["previous turn", "over 6 turns", "system message", "instructions"],
    "persona": ["pirate", "capitals"],
    "tools": ["choose and fill", "two at once", "no tool fits", "after result"],
    "extract": ["fields"],
    "anything else": ["who are you", "beyond its skills"],
}


def evaluation_samples(per_skill: int = 200, seed: int = 20) -> list[Sample]:
    """`per_skill` questions for every skill, spread evenly over its sub-skills; the same for every call."""
    samples = []
    for skill, subs in SUB_SKILLS.items():
        for i in range(per_skill):
            sub = subs[i % len(subs)]
            samples.append(evaluation_sample(random.Random(f"{seed} {skill} {i}"), skill, sub))
    return samples
