"""Function tools, and user requests that call for them.

Two sources: a bank of tools people really declare (training only), and families of tools put together
from nouns, many of them made up, so that the name and the schema have to be read rather than known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
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

CITY = {"city": "city"}
UNIT = ["celsius", "fahrenheit"]
# name | description | parameters (name:role, ?optional, name=enum) | requests
BANK = """
get_weather|Get the current weather for a city.|city:city ?unit=celsius,fahrenheit|What's the weather like in {city}?;What is the weather in {city}?;How is the weather in {city}?;What's the weather in {city} in {unit}?;Weather in {city}?;Is it raining in {city}?;Get the weather for {city}.
get_weather|Get the weather.|location:city ?unit=celsius,fahrenheit|What's the weather like in {location}?;What is the weather in {location}?;Tell me the weather in {location}.;What's the weather like in {location} in {unit}?;How warm is it in {location}?
get_current_weather|Current weather at a location.|location:city ?format=celsius,fahrenheit|What's the weather like in {location} today?;What is the weather like in {location} right now?;What is the weather in {location} in {format}?
get_forecast|Weather forecast for some days.|city:city days:int|What is the forecast for {city} for the next {days} days?;Give me a {days} day forecast for {city}.
get_time|Get the current time in a city.|city:city|What time is it in {city}?;Tell me the time in {city}.;What's the time in {city}?
get_current_time|Current time in a timezone.|timezone:city|What time is it in {timezone}?;Current time in {timezone}?
set_lamp_level|Set the level of the lamp.|level:int|Set the lamp level to {level}.;Set the lamp to {level}.;Dim the lamp to {level}.;Lamp level {level}, please.
set_temperature|Set the thermostat.|temperature:int ?room:word|Set the temperature to {temperature}.;Set the temperature in the {room} to {temperature} degrees.;Make it {temperature} degrees.
set_volume|Set the volume of the speaker.|volume:int|Set the volume to {volume}.;Volume to {volume}.;Change the volume to {volume}.
set_light|Control a light.|room:word state=on,off|Turn {state} the light in the {room}.;Turn the {room} light {state}.;Switch {state} the {room} light.
set_color|Set the light color.|color:word|Set the color to {color}.;Make the light {color}.
set_timer|Start a timer.|minutes:int ?label:word|Set a timer for {minutes} minutes.;Start a {minutes} minute timer.;Set a timer for {minutes} minutes called {label}.
set_alarm|Set an alarm.|time:time|Wake me up at {time}.;Set an alarm for {time}.
search_web|Search the web.|query:text|Search the web for {query}.;Look up {query} on the web.;Google {query}.;Search for {query}.;Find {query} online.
web_search|Search the internet.|query:text ?limit:int|Search the internet for {query}.;Search for {query} and show {limit} results.
search_files|Search files by name.|query:text|Find files about {query}.;Search my files for {query}.
read_file|Read a file.|path:code|Read the file {path}.;Open {path}.;Show me the file {path}.
send_email|Send an email.|to:email subject:text body:text|Send an email to {to} with subject {subject} and body {body}.;Email {to} with the subject "{subject}" and the body "{body}".
send_email|Send an email to someone.|to:name ?subject:text message:text|Send an email to {to} saying {message}.;Email {to}: {message};Send an email to {to} about {subject} saying "{message}".
send_message|Send a text message.|to:name text:text|Send a message to {to}: {text};Text {to} "{text}".;Send {to} the message {text}.;Tell {to} {text}.
create_event|Create a calendar event.|title:text date:date ?time:time|Create an event called {title} on {date}.;Add {title} to my calendar on {date} at {time}.;Schedule {title} for {date} at {time}.
create_reminder|Create a reminder.|text:text ?date:date|Remind me to {text}.;Remind me to {text} on {date}.;Create a reminder: {text}
add_task|Add a task to the list.|task:text ?priority=low,medium,high|Add the task {task}.;Add {task} to my tasks with {priority} priority.;New task: {task}
create_note|Save a note.|text:text|Make a note: {text};Note down {text}.;Create a note saying {text}.
convert_currency|Convert money.|amount:int from=USD,EUR,GBP,JPY,CHF to=CAD,AUD,SEK,PLN,INR|Convert {amount} {from} to {to}.;How much is {amount} {from} in {to}?;Change {amount} {from} into {to}.
convert_units|Convert units.|value:int from_unit=miles,feet,pounds,gallons to_unit=kilometers,meters,kilograms,liters|Convert {value} {from_unit} to {to_unit}.;How many {to_unit} are {value} {from_unit}?
get_stock_price|Get the price of a stock.|symbol:ticker|What is the stock price of {symbol}?;How much is {symbol} trading at?;Stock price of {symbol}?;Get the price of {symbol}.
book_flight|Book a flight.|origin:city destination:city ?date:date|Book a flight from {origin} to {destination}.;Book a flight from {origin} to {destination} on {date}.;I want to fly from {origin} to {destination} on {date}.
book_hotel|Book a hotel.|city:city nights:int|Book a hotel in {city} for {nights} nights.;I need a hotel in {city} for {nights} nights.
book_table|Book a restaurant table.|restaurant:name people:int time:time|Book a table at {restaurant} for {people} people at {time}.;Reserve a table for {people} at {restaurant} at {time}.
get_directions|Directions between places.|origin:city destination:city ?mode=driving,walking,cycling|How do I get from {origin} to {destination}?;Directions from {origin} to {destination} by {mode}.;Give me {mode} directions from {origin} to {destination}.
get_population|Population of a city.|city:city|What is the population of {city}?;How many people live in {city}?
get_capital|Capital of a country.|country:city|What is the capital of {country}?;Tell me the capital of {country}.
translate|Translate text.|text:text language:word|Translate "{text}" to {language}.;Translate {text} into {language}.
play_song|Play a song.|title:text ?artist:name|Play {title}.;Play {title} by {artist}.;Put on the song {title}.
play_music|Play music of a genre.|genre=jazz,rock,pop,folk,classical|Play some {genre}.;Play {genre} music.;I want to hear {genre}.
call_contact|Call a person.|name:name|Call {name}.;Phone {name}, please.;Give {name} a call.
get_user|Look up a user.|id:int|Get user {id}.;Who is user {id}?;Look up the user with id {id}.
get_order_status|Status of an order.|order_id:code|What is the status of order {order_id}?;Where is my order {order_id}?;Check order {order_id}.
track_package|Track a package.|tracking_number:code|Track package {tracking_number}.;Where is package {tracking_number}?
calculate|Evaluate an expression.|expression:code|Calculate {expression}.;Evaluate {expression}.
add_numbers|Add two numbers.|a:int b:int|Use the tool to add {a} and {b}.;Call add_numbers with {a} and {b}.
multiply|Multiply two numbers.|a:int b:int|Multiply {a} by {b}.;What is {a} times {b}?
roll_dice|Roll dice.|sides:int ?count:int|Roll a {sides} sided die.;Roll {count} dice with {sides} sides.
run_query|Run a database query.|table:word ?limit:int|Show the table {table}.;Show {limit} rows of the table {table}.
open_door|Open a door.|door:word|Open the {door} door.;Please open the {door} door.
lock_door|Lock or unlock a door.|door:word action=lock,unlock|Please {action} the {door} door.
order_food|Order food.|dish:word quantity:int|Order {quantity} {dish}.;I would like {quantity} {dish}, please.
create_user|Create a user account.|name:name email:email ?age:int|Create a user {name} with email {email}.;Create a user named {name}, email {email}, age {age}.
add_to_cart|Add a product to the cart.|product:word quantity:int|Add {quantity} {product} to the cart.;Put {quantity} {product} in my cart.
get_news|News about a topic.|topic:text|What's the news about {topic}?;Show me news about {topic}.;Any news on {topic}?
define_word|Define a word.|word:word|Define {word}.;What does {word} mean?;Give the definition of {word}.
""".strip().split("\n")


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


CANONICAL = [parse_bank(line) for line in BANK]

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
    asks = [f"What's the {n} like {preposition} {slot}?", f"What is the {n} {preposition} {slot}?", f"How is the {n} {preposition} {slot}?",
            f"{verb.capitalize()} the {n} {preposition} {slot}.", f"Tell me the {n} {preposition} {slot}.", f"Show me the {n} {preposition} {slot}."]
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
    asks = [f"Set the {n} {attribute} to {slot}.", f"{verb.capitalize()} the {n} {attribute} to {slot}.", f"Change the {attribute} of the {n} to {slot}.",
            f"{n.capitalize()} {attribute} to {slot}, please."]
    params = [param]
    if lex.chance(0.3):
        room = r.choice(["room", "zone", "area", "device", "place"])
        params.insert(r.randrange(2), Param(room, "word"))
        asks = [f"Set the {n} {attribute} in the {{{room}}} to {slot}.", f"In the {{{room}}}, set the {n} {attribute} to {slot}.", asks[0]]
    return Tool(f"{verb}_{noun}_{attribute}", f"{verb.capitalize()} the {attribute} of the {n}.", params, asks)


def family_switch(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    options = r.choice([["on", "off"], ["on", "off"], ["open", "closed"], r.choice(ENUMS)])
    key = r.choice(["state", "mode", "action", "position", "setting"])
    slot = "{" + key + "}"
    asks = [f"Switch the {n} to {slot}.", f"Turn the {n} {slot}.", f"Put the {n} in {slot} mode.", f"I want the {n} {slot}."]
    return Tool(f"{r.choice(['switch', 'control', 'turn', 'toggle'])}_{noun}", f"Control the {n}.", [Param(key, "enum", options)], asks)


def family_create(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(["create", "add", "book", "schedule", "make", "new"])
    say = "Create" if verb == "new" else verb.capitalize()
    title, day, hour = r.choice(["title", "name", "label", "text"]), r.choice(["date", "day"]), r.choice(["time", "start", "hour"])
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
    return Tool(f"{verb}_{noun}", f"{say} a {n}.", params, [ask + ".", ask + ", please.", "Please " + ask[0].lower() + ask[1:] + "."])


def family_send(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    person, text = r.choice(PERSON_KEYS), r.choice(TEXT_KEYS)
    role = "email" if lex.chance(0.2) else "name"
    asks = [f"Send a {n} to {{{person}}}: {{{text}}}", f"Send {{{person}}} a {n} saying {{{text}}}.", f'Send a {n} to {{{person}}} saying "{{{text}}}".',
            f"Send the {n} {{{text}}} to {{{person}}}."]
    params = [Param(person, role), Param(text, "text")]
    return Tool(f"send_{noun}", f"Send a {n} to someone.", params, asks)


def family_search(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(["search", "find", "list", "query"])
    key, count = r.choice(QUERY_KEYS), r.choice(COUNT_KEYS)
    slot = "{" + key + "}"
    asks = [f"Search the {n} for {slot}.", f"Find a {n} about {slot}.", f"Look for {slot} in the {n}.", f"{verb.capitalize()} {n}: {slot}"]
    params = [Param(key, "text")]
    if lex.chance(0.5):
        params.append(Param(count, "int"))
        asks += [f"Find {{{count}}} {n} results for {slot}.", f"Search the {n} for {slot}, at most {{{count}}}."]
    return Tool(f"{verb}_{noun}", f"Search in {n}.", params, asks)


def family_convert(lex: Lexicon) -> Tool:
    r, noun = lex.rng, lex.noun()
    units = r.sample(CURRENCIES if lex.chance(0.5) else UNITS, 6)
    a, b, c = r.choice([("amount", "from", "to"), ("value", "from_unit", "to_unit"), ("amount", "source", "target"), ("number", "unit", "into")])
    as_enum = lex.chance(0.5)
    params = [Param(a, "int"), Param(b, "enum", units[:3]), Param(c, "enum", units[3:])]
    asks = [f"Convert {{{a}}} {{{b}}} to {{{c}}}.", f"How much is {{{a}}} {{{b}}} in {{{c}}}?", f"Change {{{a}}} {{{b}}} into {{{c}}}."]
    tool = Tool(f"convert_{noun}", f"Convert {words_of(noun)}.", params, asks)
    tool.schema["plain_strings"] = not as_enum
    return tool


def family_act(lex: Lexicon) -> Tool:
    """One verb on one thing: delete, cancel, open, play, start..."""
    r, noun = lex.rng, lex.noun()
    n = words_of(noun)
    verb = r.choice(["delete", "cancel", "open", "close", "start", "stop", "play", "print", "call", "remove", "track", "lock", "pay", "order", "buy", "describe"])
    if lex.chance(0.2):
        verb = lex.made_up()
    role = r.choice(["code", "int", "name", "word", "text"])
    key = r.choice([f"{noun}_id", "id", "number"]) if role in ("code", "int") else r.choice(["name", "item", "target", noun, "title"])
    slot = "{" + key + "}"
    asks = [f"{verb.capitalize()} the {n} {slot}.", f"{verb.capitalize()} {n} {slot}.", f"Please {verb} the {n} {slot}.", f"Can you {verb} the {n} {slot}?"]
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
        role = {"name": "name", "age": "int", "city": "city", "date": "date"}.get(key) or r.choice(["int", "word", "name", "code", "float", "enum"])
        params.append(Param(key, role, r.choice(ENUMS) if role == "enum" else None))
    listed = [f"{words_of(p.name)} {{{p.name}}}" for p in params]
    joined = listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
    n = words_of(noun)
    asks = [f"{verb.capitalize()} a {n} with {joined}.", f"{verb.capitalize()} the {n} with {joined}.", f"{verb.capitalize()} {n}: {', '.join(listed)}"]
    return Tool(f"{verb}_{noun}", f"{verb.capitalize()} a {n}.", params, asks)


FAMILIES: dict[Callable[[Lexicon], Tool], float] = {
    family_get: 5, family_set: 3, family_switch: 1.5, family_create: 2, family_send: 2, family_search: 2, family_convert: 1, family_act: 2.5, family_any: 2.5,
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(w.capitalize() for w in rest)


def draw_tool(lex: Lexicon) -> Tool:
    """A tool of this split with its JSON schema; evaluation tools never come from the bank."""
    if lex.split != EVAL and lex.chance(0.35):
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
            item["description"] = r.choice([f"The {words_of(p.name)}", f"{words_of(p.name).capitalize()} to use", f"The {words_of(p.name)} of the request"])
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
    value: Callable[[], Value] = lambda: r.choice([lambda: r.randint(0, 99), lambda: r.randint(100, 9999), lex.plain, lex.name, lambda: lex.phrase(2, 3)])()
    kind = r.random()
    if kind < 0.45:
        keys = [lex.noun() if lex.chance(0.6) else r.choice(["status", "result", "temperature", "condition", "price", "unit", "id", "count"]) for _ in range(r.randint(1, 3))]
        data = {key: value() for key in keys}
        return json.dumps(data, ensure_ascii=False), ", ".join(f"{words_of(k)} {spell(v)}" for k, v in data.items())
    if kind < 0.55:
        items = [str(value()) for _ in range(r.randint(2, 3))]
        return json.dumps(items, ensure_ascii=False), ", ".join(items)
    text = r.choice([lambda: f"{r.randint(-9, 40)} degrees and {r.choice(ADJECTIVES)}", lambda: lex.phrase(2, 5), lambda: f"{r.randint(1, 9999)} {r.choice(UNITS)}", lambda: f"{lex.noun()}: {value()}",
                     lambda: str(value()), lambda: "done", lambda: f"The {lex.noun()} is {value()}"])()
    return text, text
