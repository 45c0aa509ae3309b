"""Function tools, and user requests that call for them.

Two sources: a bank of tools people really declare (training only), and families of tools put together
from nouns, many of them made up, so that the name and the schema have to be read rather than known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from words import ADJECTIVES, ATTRIBUTES, COLORS, CURRENCIES, ENUMS, EVAL, UNITS, Lexicon

Value = str | int | float | bool | list[str]


@dataclass
class Param:
    name: str
    role: str
    options: list[str] | None = None


@dataclass
class Tool:
    """A function and the ways of asking for it: templates with one `{slot}` per argument used."""

    name: str
    about: str
    params: list[Param]
    asks: list[str]
    schema: dict = field(default_factory=dict)

    def request(self, lex: Lexicon, ask: str | None = None) -> tuple[str, dict[str, Value]]:
        """A question for this tool, and the arguments it states."""
        ask = ask or lex.rng.choice(self.asks)
        arguments = {p.name: draw_value(lex, p) for p in self.params if "{" + p.name + "}" in ask}
        return ask.format(**{k: spell(v) for k, v in arguments.items()}), arguments


def spell(value: Value) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def draw_value(lex: Lexicon, param: Param) -> Value:
    r = lex.rng
    if param.options:
        return r.choice(param.options)
    makers: dict[str, Callable[[], Value]] = {
        "city": lex.city,
        "name": lex.full_name,
        "text": lambda: lex.phrase(1, 4),
        "word": lambda: lex.word() if lex.chance(0.3) else lex.plain(),
        "code": lambda: lex.code() if lex.chance(0.5) else lex.long_number(),
        "email": lex.email,
        "date": lex.date,
        "time": lex.time,
        "int": lambda: r.randint(0, 99) if lex.chance(0.7) else r.randint(100, 9999),
        "float": lambda: round(r.uniform(0, 100), 1) if lex.chance(0.5) else r.randint(1, 500),
        "ticker": lambda: lex.draw(lambda: "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=r.randint(3, 4)))),
        "list": lambda: [lex.plain() for _ in range(r.randint(2, 3))],
    }
    return makers[param.role]()


JSON_TYPE = {"int": "integer", "float": "number", "list": "array"}

BANK = Path(__file__).with_name("tool_bank.txt")


def parse_bank(line: str) -> Tool:
    name, about, params, asks = line.split("|")
    parsed = []
    for item in params.split():
        item = item.lstrip("?")
        if "=" in item:
            key, options = item.split("=")
            parsed.append(Param(key, "enum", options.split(",")))
        else:
            key, role = item.split(":")
            parsed.append(Param(key, role))
    return Tool(name, about, parsed, asks.split(";"))


CANONICAL = [parse_bank(line) for line in BANK.read_text().splitlines() if not line.startswith("#")]

PLACE_KEYS = ["city", "location", "place", "town", "destination", "region", "country", "area", "site"]
PERSON_KEYS = ["name", "person", "user", "contact", "recipient", "customer", "to", "owner", "guest"]
TEXT_KEYS = ["text", "message", "content", "body", "note", "title", "subject", "description"]
QUERY_KEYS = ["query", "q", "topic", "keyword", "term", "search", "text"]
COUNT_KEYS = ["limit", "count", "max_results", "amount", "number", "quantity"]
ID_KEYS = ["id", "code", "number", "reference", "key"]


def words_of(noun: str) -> str:
    return noun.replace("_", " ")


def family_get(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    if lex.chance(0.3):
        noun = f"{lex.noun()}_{noun}"
    n = words_of(noun)
    verb = r.choice(["get", "get", "get", "fetch", "check", "lookup", "show", "read"])
    if lex.chance(0.6):
        key, role, preposition = r.choice(PLACE_KEYS), "city", r.choice(["in", "in", "for"])
    elif lex.chance(0.6):
        key, role, preposition = r.choice(PERSON_KEYS[:6]), "name", r.choice(["of", "for"])
    else:
        key, role, preposition = f"{noun}_id" if lex.chance(0.3) else r.choice(ID_KEYS), "code", r.choice(["of", "for"])
    slot = "{" + key + "}"
    asks = [
        f"What's the {n} like {preposition} {slot}?",
        f"What is the {n} {preposition} {slot}?",
        f"How is the {n} {preposition} {slot}?",
        f"{verb.capitalize()} the {n} {preposition} {slot}.",
        f"Tell me the {n} {preposition} {slot}.",
        f"Show me the {n} {preposition} {slot}.",
    ]
    params = [Param(key, role)]
    if lex.chance(0.35):
        options = r.choice(ENUMS)
        extra = Param(r.choice(["unit", "format", "mode", "type", "kind"]), "enum", options)
        params.append(extra)
        asks.append(f"What is the {n} {preposition} {slot} in {{{extra.name}}}?")
    return Tool(f"{verb}_{noun}", f"Get the {n} {preposition} a {words_of(key)}.", params, asks)


def family_set(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    attribute = r.choice(ATTRIBUTES) if lex.chance(0.7) else lex.noun()
    n = words_of(noun)
    verb = r.choice(["set", "set", "set", "change", "adjust", "update"])
    key = r.choice([attribute, attribute, "value", "level", "to"])
    kind = r.random()
    if kind < 0.6:
        param = Param(key, "int")
    elif kind < 0.9:
        param = Param(key, "enum", r.choice(ENUMS) if lex.chance(0.7) else r.sample(COLORS, 3))
    else:
        param = Param(key, "word")
    slot = "{" + key + "}"
    asks = [
        f"Set the {n} {attribute} to {slot}.",
        f"{verb.capitalize()} the {n} {attribute} to {slot}.",
        f"Change the {attribute} of the {n} to {slot}.",
        f"{n.capitalize()} {attribute} to {slot}, please.",
    ]
    params = [param]
    if lex.chance(0.3):
        room = r.choice(["room", "zone", "area", "device", "place"])
        params.insert(r.randrange(2), Param(room, "word"))
        asks = [
            f"Set the {n} {attribute} in the {{{room}}} to {slot}.",
            f"In the {{{room}}}, set the {n} {attribute} to {slot}.",
            asks[0],
        ]
    return Tool(f"{verb}_{noun}_{attribute}", f"{verb.capitalize()} the {attribute} of the {n}.", params, asks)


def family_switch(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    options = r.choice([["on", "off"], ["on", "off"], ["open", "closed"], r.choice(ENUMS)])
    key = r.choice(["state", "mode", "action", "position", "setting"])
    slot = "{" + key + "}"
    asks = [
        f"Switch the {n} to {slot}.",
        f"Turn the {n} {slot}.",
        f"Put the {n} in {slot} mode.",
        f"I want the {n} {slot}.",
    ]
    return Tool(
        f"{r.choice(['switch', 'control', 'turn', 'toggle'])}_{noun}",
        f"Control the {n}.",
        [Param(key, "enum", options)],
        asks,
    )


def family_create(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(["create", "add", "book", "schedule", "make", "new"])
    say = "Create" if verb == "new" else verb.capitalize()
    title, day, hour = (
        r.choice(["title", "name", "label", "text"]),
        r.choice(["date", "day"]),
        r.choice(["time", "start", "hour"]),
    )
    params, ask = [Param(title, "text")], f"{say} a {n} called {{{title}}}"
    if lex.chance(0.5):
        params.append(Param(day, "date"))
        ask += f" on {{{day}}}"
        if lex.chance(0.5):
            params.append(Param(hour, "time"))
            ask += f" at {{{hour}}}"
    if lex.chance(0.3):
        person = r.choice(PERSON_KEYS[1:6])
        params.append(Param(person, "name"))
        ask += f" for {{{person}}}"
    return Tool(
        f"{verb}_{noun}",
        f"{say} a {n}.",
        params,
        [ask + ".", ask + ", please.", "Please " + ask[0].lower() + ask[1:] + "."],
    )


def family_send(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    person, text = r.choice(PERSON_KEYS), r.choice(TEXT_KEYS)
    role = "email" if lex.chance(0.2) else "name"
    asks = [
        f"Send a {n} to {{{person}}}: {{{text}}}",
        f"Send {{{person}}} a {n} saying {{{text}}}.",
        f'Send a {n} to {{{person}}} saying "{{{text}}}".',
        f"Send the {n} {{{text}}} to {{{person}}}.",
    ]
    params = [Param(person, role), Param(text, "text")]
    return Tool(f"send_{noun}", f"Send a {n} to someone.", params, asks)


def family_search(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(["search", "find", "list", "query"])
    key, count = r.choice(QUERY_KEYS), r.choice(COUNT_KEYS)
    slot = "{" + key + "}"
    asks = [
        f"Search the {n} for {slot}.",
        f"Find a {n} about {slot}.",
        f"Look for {slot} in the {n}.",
        f"{verb.capitalize()} {n}: {slot}",
    ]
    params = [Param(key, "text")]
    if lex.chance(0.5):
        params.append(Param(count, "int"))
        asks += [f"Find {{{count}}} {n} results for {slot}.", f"Search the {n} for {slot}, at most {{{count}}}."]
    return Tool(f"{verb}_{noun}", f"Search in {n}.", params, asks)


def family_convert(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    units = r.sample(CURRENCIES if lex.chance(0.5) else UNITS, 6)
    a, b, c = r.choice(
        [
            ("amount", "from", "to"),
            ("value", "from_unit", "to_unit"),
            ("amount", "source", "target"),
            ("number", "unit", "into"),
        ]
    )
    as_enum = lex.chance(0.5)
    params = [Param(a, "int"), Param(b, "enum", units[:3]), Param(c, "enum", units[3:])]
    asks = [
        f"Convert {{{a}}} {{{b}}} to {{{c}}}.",
        f"How much is {{{a}}} {{{b}}} in {{{c}}}?",
        f"Change {{{a}}} {{{b}}} into {{{c}}}.",
    ]
    tool = Tool(f"convert_{noun}", f"Convert {words_of(noun)}.", params, asks)
    tool.schema["plain_strings"] = not as_enum
    return tool


def family_act(lex: Lexicon) -> Tool:
    """One verb on one thing: delete, cancel, open, play, start..."""
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(
        [
            "delete",
            "cancel",
            "open",
            "close",
            "start",
            "stop",
            "play",
            "print",
            "call",
            "remove",
            "track",
            "lock",
            "pay",
            "order",
            "buy",
            "describe",
        ]
    )
    if lex.chance(0.2):
        verb = lex.made_up()
    role = r.choice(["code", "int", "name", "word", "text"])
    key = (
        r.choice([f"{noun}_id", "id", "number"])
        if role in ("code", "int")
        else r.choice(["name", "item", "target", noun, "title"])
    )
    slot = "{" + key + "}"
    asks = [
        f"{verb.capitalize()} the {n} {slot}.",
        f"{verb.capitalize()} {n} {slot}.",
        f"Please {verb} the {n} {slot}.",
        f"Can you {verb} the {n} {slot}?",
    ]
    return Tool(f"{verb}_{noun}", f"{verb.capitalize()} a {n}.", [Param(key, role)], asks)


def family_any(lex: Lexicon) -> Tool:
    """A tool with any parameters, which the request names one by one."""
    r, noun = lex.rng, lex.noun()
    verb = r.choice(["register", "update", "configure", "submit", "create", "run", "log", "plan", lex.made_up()])
    keys: list[str] = []
    for _ in range(r.randint(1, 4)):
        key = r.choice([lex.noun(), lex.made_up(), r.choice(ATTRIBUTES), "name", "age", "city", "date", "color"])
        if key not in keys and key != noun:
            keys.append(key)
    params = []
    for key in keys or ["value"]:
        role = {"name": "name", "age": "int", "city": "city", "date": "date"}.get(key) or r.choice(
            ["int", "word", "name", "code", "float", "enum"]
        )
        params.append(Param(key, role, r.choice(ENUMS) if role == "enum" else None))
    listed = [f"{words_of(p.name)} {{{p.name}}}" for p in params]
    joined = listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
    n = words_of(noun)
    asks = [
        f"{verb.capitalize()} a {n} with {joined}.",
        f"{verb.capitalize()} the {n} with {joined}.",
        f"{verb.capitalize()} {n}: {', '.join(listed)}",
    ]
    return Tool(f"{verb}_{noun}", f"{verb.capitalize()} a {n}.", params, asks)


FAMILIES: dict[Callable[[Lexicon], Tool], float] = {
    family_get: 5,
    family_set: 3,
    family_switch: 1.5,
    family_create: 2,
    family_send: 2,
    family_search: 2,
    family_convert: 1,
    family_act: 2.5,
    family_any: 2.5,
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(w.capitalize() for w in rest)


def draw_tool(lex: Lexicon) -> Tool:
    """A tool of this split with its JSON schema; evaluation tools never come from the bank."""
    if lex.split != EVAL and lex.chance(0.3):
        base = lex.rng.choice(CANONICAL)
        tool = Tool(base.name, base.about, list(base.params), base.asks)
    else:
        tool = lex.weighted(FAMILIES)(lex)
        if lex.chance(0.06):
            tool.name = camel(tool.name)
    tool.schema = function_schema(lex, tool)
    return tool


def function_schema(lex: Lexicon, tool: Tool) -> dict:
    """The declaration as clients send it, with the variations clients have."""
    r = lex.rng
    described = lex.chance(0.3)
    properties = {}
    for p in tool.params:
        item: dict[str, Any] = {"type": JSON_TYPE.get(p.role, "string")}
        if p.options and not tool.schema.get("plain_strings"):
            item["enum"] = p.options
        if p.role == "list":
            item["items"] = {"type": "string"}
        if described:
            item["description"] = r.choice(
                [
                    f"The {words_of(p.name)}",
                    f"{words_of(p.name).capitalize()} to use",
                    f"The {words_of(p.name)} of the request",
                ]
            )
            if lex.chance(0.3):
                item = dict(reversed(item.items()))
        properties[p.name] = item
    used_always = [p.name for p in tool.params if all("{" + p.name + "}" in ask for ask in tool.asks)]
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if lex.chance(0.75):
        parameters["required"] = used_always
    if lex.chance(0.25):
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": tool.name}
    if lex.chance(0.7):
        function["description"] = tool.about if lex.chance(0.8) else tool.about.rstrip(".")
    function["parameters"] = parameters
    if lex.chance(0.1):
        function["strict"] = True
    return {"type": "function", "function": function}


def draw_result(lex: Lexicon, tool: Tool, arguments: dict[str, Value]) -> tuple[str, str]:
    """What the tool returns, and how the answer words it."""
    r = lex.rng
    value: Callable[[], Value] = lambda: r.choice(
        [lambda: r.randint(0, 99), lambda: r.randint(100, 9999), lex.plain, lex.name, lambda: lex.phrase(2, 3)]
    )()
    kind = r.random()
    if kind < 0.45:
        keys = [
            lex.noun()
            if lex.chance(0.6)
            else r.choice(["status", "result", "temperature", "condition", "price", "unit", "id", "count"])
            for _ in range(r.randint(1, 3))
        ]
        data = {key: value() for key in keys}
        return json.dumps(data, ensure_ascii=False), ", ".join(f"{words_of(k)} {spell(v)}" for k, v in data.items())
    if kind < 0.55:
        items = [str(value()) for _ in range(r.randint(2, 3))]
        return json.dumps(items, ensure_ascii=False), ", ".join(items)
    text = r.choice(
        [
            lambda: f"{r.randint(-9, 40)} degrees and {r.choice(ADJECTIVES)}",
            lambda: lex.phrase(2, 5),
            lambda: f"{r.randint(1, 9999)} {r.choice(UNITS)}",
            lambda: f"{lex.noun()}: {value()}",
            lambda: str(value()),
            lambda: "done",
            lambda: f"The {lex.noun()} is {value()}",
        ]
    )()
    return text, text
