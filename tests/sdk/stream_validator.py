"""Whether a stream of `/v1/responses` keeps the protocol: written from the specifications, not from the server.

`check_stream` takes the bytes of a stream, `check_response` one whole response. Both raise `Violation`. The form of
each single event is left to `schemas.py`.
"""

import json
import re
from dataclasses import dataclass, field

import jsonschema

TERMINAL = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
LIFECYCLE = {
    "response.created": ("queued", "in_progress"),
    "response.queued": ("queued",),
    "response.in_progress": ("in_progress",),
    **{name: (status,) for name, status in TERMINAL.items()},
}
# What may differ from one response object of a stream to the next.
PROGRESS = {"status", "output", "usage", "error", "incomplete_details", "completed_at", "service_tier"}
ID_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "compaction": "cmp_",
}
# An item's keys that are already there when it is added.
FIXED = ("id", "type", "role", "call_id", "name", "namespace", "phase")
# An item's keys that are streamed, with their values when it is added.
STREAMED = {
    "message": {"content": []},
    "reasoning": {"content": [], "summary": []},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
    "compaction": {},
}
PART_LISTS = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}
PART_TYPES = {
    "message": {"content": ("output_text", "refusal")},
    "reasoning": {"content": ("reasoning_text",), "summary": ("summary_text",)},
}
# What is told in deltas: the type of its item or of its part, and the key that holds all of it in the end.
ITEM_TEXTS = {
    "response.function_call_arguments": ("function_call", "arguments"),
    "response.custom_tool_call_input": ("custom_tool_call", "input"),
}
PART_TEXTS = {
    "response.output_text": ("output_text", "text"),
    "response.refusal": ("refusal", "refusal"),
    "response.reasoning_text": ("reasoning_text", "text"),
    "response.reasoning": ("reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary_text", "text"),
}
ENDED = ("completed", "incomplete")
INCOMPLETE_REASONS = ("max_output_tokens", "content_filter")
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Violation(AssertionError):
    """A rule of the protocol that was broken."""


def require(holds, message):
    if not holds:
        raise Violation(message)


def parse_json(text):
    """Stricter than Python, which takes NaN and a key that comes twice."""

    def refuse(constant):
        raise Violation(f"{constant} is not JSON")

    def unique(pairs):
        keys = [key for key, _ in pairs]
        require(len(keys) == len(set(keys)), f"a key comes twice in {keys}")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise Violation(f"not JSON: {error}") from None


def read_frames(raw):
    """The events of whole frames, and whether `[DONE]` ended them."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Violation(f"the stream is not UTF-8: {error}") from None
    require("\r" not in text, "a carriage return is in the stream")
    require(text.endswith("\n\n"), "the last frame is not complete")
    events, is_done = [], False
    for frame in text.removesuffix("\n\n").split("\n\n"):
        lines = frame.split("\n")
        if all(line.startswith(":") for line in lines):
            continue
        require(not is_done, f"a frame comes after [DONE]: {frame!r}")
        if lines == ["data: [DONE]"]:
            is_done = True
            continue
        has_form = len(lines) == 2 and lines[0].startswith("event: ") and lines[1].startswith("data: ")
        require(has_form, f"a frame is not one event line and one data line: {frame!r}")
        event = parse_json(lines[1].removeprefix("data: "))
        require(isinstance(event, dict), f"an event is not an object: {frame!r}")
        name = lines[0].removeprefix("event: ")
        require(event.get("type") == name, f"the frame is called {name} and its body {event.get('type')}")
        events.append(event)
    return events, is_done


def check_stream(raw, check_event=lambda event: None, is_cut=False, is_background=False):
    """Gives the final response; None if the client left before it, which `is_cut` allows, or if it was cancelled or
    deleted, which ends the stream of a response that `is_background` without a terminal event.
    """
    if is_cut:
        raw = b"".join(raw.rpartition(b"\n\n")[:2]) or b": nothing\n\n"
    events, is_done = read_frames(raw)
    stream = Stream()
    for event in events:
        try:
            check_event(event)
            stream.read(event)
        except Violation as violation:
            raise Violation(f"event {stream.num_events} ({event['type']}): {violation}") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise Violation(f"event {stream.num_events} ({event['type']}): malformed, {error!r}") from None
    if is_cut and not is_done:
        return stream.final
    require(is_done, "the stream does not end with [DONE]")
    require(stream.final is not None or is_background, "the stream has no terminal event")
    return stream.final


@dataclass
class Part:
    """An open content or summary part."""

    kind: str
    index: int
    type: str
    text: str = ""
    logprobs: list = field(default_factory=list)
    annotations: list = field(default_factory=list)
    done: dict | None = None


@dataclass
class Item:
    """An open item, put together from what was said about it."""

    index: int
    added: dict
    built: dict
    text: str = ""
    is_text_done: bool = False
    part: Part | None = None


class Stream:
    """What a client knows after each event."""

    def __init__(self):
        self.num_events = 0
        self.first = None
        self.last_lifecycle = None
        self.error = None
        self.item = None
        self.done = []
        self.identities = set()
        self.reasoning_names = set()
        self.final = None

    def read(self, event):
        number = event.get("sequence_number")
        require(number == self.num_events and type(number) is int, f"sequence_number is {number}")
        require(self.final is None, "an event comes after the terminal one")
        name = event["type"]
        if self.first is None:
            require(name == "response.created", "the first event is not response.created")
        if self.error is not None:
            require(name == "response.failed", "an error is followed by something else than response.failed")
        if name in LIFECYCLE:
            self.read_lifecycle(name, event)
        elif name.startswith("ortolan:"):
            pass
        elif name == "error":
            self.read_error(event)
        else:
            require(self.last_lifecycle == "response.in_progress", "output comes before response.in_progress")
            require("error" not in event, "an `error` key is in an event that is none")
            self.read_output(name, event)
        self.num_events += 1

    def read_lifecycle(self, name, event):
        before, self.last_lifecycle = self.last_lifecycle, name
        response = event["response"]
        require(response.get("status") in LIFECYCLE[name], f"the status is {response.get('status')}")
        require("error" not in event, "an `error` key is in an event that is none")
        if name == "response.created":
            require(before is None, "response.created comes twice")
            self.first = response
        for key in (self.first | response).keys() - PROGRESS:
            same = key in response and key in self.first and response[key] == self.first[key]
            require(same, f"`{key}` of the response changed")
        check_response(response)
        if name == "response.queued":
            require(before == "response.created", "response.queued does not follow response.created")
        elif name == "response.in_progress":
            require(before in ("response.created", "response.queued"), "response.in_progress comes twice")
        elif name in TERMINAL:
            may_follow = ("response.in_progress", "response.created")[: 1 + (name == "response.failed")]
            require(before in may_follow, "the response ends before it is in progress")
            self.read_end(response)

    def read_end(self, response):
        require(self.item is None, "an item is still open at the end")
        require(response["output"] == self.done, "the output is not the items that were done")
        if response["status"] == "failed":
            require(self.error is not None, "a failure was not told by an error event")
            told = {key: self.error[key] for key in ("code", "message")}
            require(response["error"] == told, "the response failed with another error than the event's")
        self.final = response

    def read_error(self, event):
        require(self.item is None, "an item is still open at an error")
        nested = event.get("error")
        require(isinstance(nested, dict), "an error event without its `error` object")
        require(set(nested) == {"type", "code", "message", "param"}, f"the keys of an error are {sorted(nested)}")
        for key in ("code", "message", "param"):
            require(key in event and event[key] == nested[key], f"`{key}` differs between the event and its `error`")
        says = nested["message"] and nested["type"] and isinstance(nested["code"], str)
        require(says, "an error does not say what it is")
        self.error = event

    def read_output(self, name, event):
        if name == "response.output_item.added":
            return self.add_item(event)
        require(self.item is not None, "no item is open")
        index = event.get("output_index")
        require(index == self.item.index, f"output_index is {index}, and {self.item.index} is open")
        if name == "response.output_item.done":
            return self.end_item(event["item"])
        item_id = event.get("item_id")
        require(item_id == self.item.added["id"], f"item_id is {item_id}, and {self.item.added['id']} is open")
        if name == "response.output_text.annotation.added":
            return self.add_annotation(event)
        stem, _, action = name.rpartition(".")
        if stem in PART_LISTS and action in ("added", "done"):
            return self.add_part(stem, event) if action == "added" else self.end_part(stem, event)
        require(action in ("delta", "done") and stem in (ITEM_TEXTS | PART_TEXTS), "no event of the protocol")
        if stem in ITEM_TEXTS:
            self.read_item_text(stem, action, event)
        else:
            self.read_part_text(stem, action, event)

    def add_item(self, event):
        require(self.item is None, "an item is added while another is open")
        require(event.get("output_index") == len(self.done), f"output_index is {event.get('output_index')}")
        item, kind = event["item"], event["item"].get("type", "")
        require(item.get("status", "in_progress") == "in_progress", f"an item is added as {item.get('status')}")
        if not kind.startswith("ortolan:"):
            require(kind in STREAMED, f"{kind!r} is no type of an item")
            for key, empty in STREAMED[kind].items():
                require(item.get(key, empty) == empty, f"an item is added with `{key}`")
        check_item(item)
        for identity in {item["id"], item.get("call_id", item["id"])}:
            require(identity not in self.identities, f"two items are called {identity}")
            self.identities.add(identity)
        built = {key: list(value) if value == [] else value for key, value in STREAMED.get(kind, {}).items()}
        self.item = Item(len(self.done), item, built)

    def end_item(self, item):
        open_item = self.item
        require(open_item.part is None, "an item is done while its part is open")
        for key in FIXED:
            require(item.get(key) == open_item.added.get(key), f"`{key}` of the item changed")
        require(item.get("status", "completed") in ENDED, f"an item is done as {item.get('status')}")
        needs_done = any(kind == item["type"] for kind, _ in ITEM_TEXTS.values())
        require(open_item.is_text_done or not needs_done, "an item is done before its text is")
        for key, built in open_item.built.items():
            require(item.get(key, built) == built, f"`{key}` of the item is not what was streamed")
            require(key in item or built in ([], ""), f"`{key}` was streamed and is not in the item")
        check_item(item)
        require(not any(is_incomplete(done) for done in self.done), "an item follows an incomplete one")
        self.done.append(item)
        self.item = None

    def add_part(self, stem, event):
        kind, index_key = PART_LISTS[stem]
        item, part, index = self.item, event["part"], event.get(index_key)
        require(item.part is None, "a part is added while another is open")
        types = PART_TYPES.get(item.added["type"], {}).get(kind, ())
        require(part.get("type") in types, f"a {item.added['type']} has no part of type {part.get('type')}")
        require(index == len(item.built[kind]), f"{index_key} is {index}")
        for key in ("text", "refusal"):
            require(part.get(key, "") == "", "a part is added with text")
        for key in ("logprobs", "annotations"):
            require(part.get(key, []) == [], f"a part is added with {key}")
        item.part = Part(kind, index, part["type"])

    def open_part(self, event, kind=None):
        part = self.item.part
        require(part is not None and kind in (None, part.kind), "no such part is open")
        index_key = "content_index" if part.kind == "content" else "summary_index"
        require(event.get(index_key) == part.index, f"{index_key} is {event.get(index_key)}, and {part.index} is open")
        return part

    def end_part(self, stem, event):
        part = self.open_part(event, PART_LISTS[stem][0])
        require(part.done is not None, "a part is done before its text is")
        said = event["part"]
        expected = {"type": part.type} | part.done
        if part.type == "output_text":
            expected["annotations"] = part.annotations
        for key, value in expected.items():
            require(said.get(key, []) == value, f"`{key}` of the part is not what was streamed")
        self.item.built[part.kind].append(said)
        self.item.part = None

    def add_annotation(self, event):
        part = self.open_part(event, "content")
        require(part.type == "output_text", f"a part of type {part.type} has no annotations")
        index = event.get("annotation_index")
        require(index == len(part.annotations), f"annotation_index is {index}")
        part.annotations.append(event["annotation"])

    def read_item_text(self, stem, action, event):
        kind, key = ITEM_TEXTS[stem]
        item = self.item
        require(item.added["type"] == kind, f"a {item.added['type']} has no {key}")
        require(not item.is_text_done, "more comes after the text is done")
        if action == "delta":
            item.text += event["delta"]
            return
        require(event[key] == item.text, f"`{key}` is not what was streamed")
        require(event.get("name", item.added["name"]) == item.added["name"], "`name` of the call changed")
        item.built[key] = item.text
        item.is_text_done = True

    def read_part_text(self, stem, action, event):
        kind, key = PART_TEXTS[stem]
        part = self.open_part(event)
        require(part.type == kind, f"a part of type {part.type} has no {stem} events")
        require(part.done is None, "more comes after the text is done")
        if kind == "reasoning_text":
            self.reasoning_names.add(stem)
            require(len(self.reasoning_names) == 1, "raw reasoning has two names in one stream")
        logprobs = event.get("logprobs", [])
        if action == "delta":
            part.text += event["delta"]
            part.logprobs += logprobs
            return
        require(event[key] == part.text, f"`{key}` is not what was streamed")
        require(logprobs == part.logprobs, "`logprobs` are not what was streamed")
        part.done = {key: part.text} | ({"logprobs": part.logprobs} if kind == "output_text" else {})


def is_incomplete(item):
    return item.get("status") == "incomplete"


def check_item(item):
    """What holds for an item by itself."""
    kind, item_id = item["type"], item.get("id")
    prefix = ID_PREFIXES.get(kind, "")
    require(isinstance(item_id, str) and item_id.startswith(prefix), f"the id of a {kind} is {item_id}")
    if kind == "message":
        require(item.get("role") == "assistant", f"the role of a message is {item.get('role')}")
    if kind in ("function_call", "custom_tool_call"):
        call_id, name = item.get("call_id"), item.get("name")
        require(isinstance(call_id, str) and NAME.fullmatch(call_id), f"the call_id is {call_id}")
        require(call_id != item_id, "call_id and id are the same")
        require(isinstance(name, str) and NAME.fullmatch(name), f"the name of a call is {name}")
    if kind == "function_call" and item.get("status") == "completed":
        require(isinstance(parse_json(item["arguments"]), dict), "the arguments of a call are no JSON object")


def check_response(response):
    """What holds for a response by itself, be it in progress or at its end."""
    status, output, usage = response["status"], response["output"], response["usage"]
    require(str(response["id"]).startswith("resp_"), f"the id of the response is {response['id']}")
    require(response["object"] == "response", f"the object is {response['object']}")
    require(type(response["created_at"]) is int, "created_at is no whole number")
    for item in output:
        check_item(item)
        require(item.get("status", "completed") in ENDED, f"an item stays {item.get('status')}")
    require(not any(is_incomplete(item) for item in output[:-1]), "an incomplete item is not the last one")

    completed_at = response["completed_at"]
    if status == "completed":
        is_time = type(completed_at) is int and completed_at >= response["created_at"]
        require(is_time, f"completed_at is {completed_at} and created_at {response['created_at']}")
        require(not any(is_incomplete(item) for item in output), "an item of a completed response is incomplete")
        check_promises(response)
    else:
        require(completed_at is None, f"completed_at is set and the response is {status}")
    error, details = response["error"], response["incomplete_details"]
    require((error is not None) == (status == "failed"), f"the error is {error}, the status {status}")
    require((details is not None) == (status == "incomplete"), f"incomplete_details is {details}, the status {status}")
    if details is not None:
        require(details["reason"] in INCOMPLETE_REASONS, f"the reason is {details['reason']}")

    if status in ("queued", "in_progress"):
        require(output == [] and usage is None, "a response in progress has output or usage")
    elif status not in ("failed", "cancelled"):
        require(usage is not None, "a response has ended without usage")
    if usage is not None:
        check_usage(usage)
        num_tokens, limit = usage["output_tokens"], response["max_output_tokens"]
        require(limit is None or num_tokens <= limit, f"{num_tokens} tokens where {limit} may be")
    check_calls(response)
    for item in output:
        for part in item.get("content", []):
            check_logprobs(part.get("logprobs", []), response["top_logprobs"])


def check_usage(usage):
    cached, written = (usage["input_tokens_details"][key] for key in ("cached_tokens", "cache_write_tokens"))
    reasoning = usage["output_tokens_details"]["reasoning_tokens"]
    counts = (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"], cached, written, reasoning)
    require(all(type(count) is int and count >= 0 for count in counts), f"usage is not in whole numbers: {usage}")
    require(usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], f"total_tokens is no sum: {usage}")
    require(cached + written <= usage["input_tokens"], f"more tokens are cached than there are: {usage}")
    require(reasoning <= usage["output_tokens"], f"more tokens are reasoning than there are: {usage}")


def check_logprobs(logprobs, num_alternatives):
    for entry in logprobs:
        alternatives = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        num = len(alternatives)
        require(num <= num_alternatives, f"{num} alternatives where {num_alternatives} may be")
        require(alternatives == sorted(alternatives, reverse=True), f"alternatives are not in order: {alternatives}")
        # A little above zero is rounding.
        require(max(alternatives + [entry["logprob"]]) < 1e-3, f"{entry['token']!r} is more than certain")


def check_calls(response):
    """Calls are of tools that were offered and chosen."""
    choice = response["tool_choice"]
    calls = [item for item in response["output"] if item["type"] in ("function_call", "custom_tool_call")]
    names = {call["name"] for call in calls}
    tools = [inner for tool in response["tools"] for inner in tool.get("tools", [tool])]
    offered = {tool["name"] for tool in tools if "name" in tool}
    require(names <= offered, f"{sorted(names - offered)} is called and was not offered")
    require(response["parallel_tool_calls"] or len(calls) <= 1, "several calls where one was allowed")
    require(not (calls and choice == "none"), "a call where none was allowed")
    mode, allowed = choice, offered
    if isinstance(choice, dict):
        mode = choice.get("mode", "required")
        allowed = {tool["name"] for tool in choice.get("tools", [choice]) if "name" in tool}
    require(names <= allowed, f"{sorted(names - allowed)} is called and was not allowed")
    if response["status"] == "completed":
        require(calls or mode != "required", "no call where one was required")


def check_promises(response):
    """A completed answer has the form that was asked for."""
    text_format = response["text"]["format"]
    last = response["output"][-1] if response["output"] else None
    if text_format["type"] not in ("json_object", "json_schema") or last is None or last["type"] != "message":
        return
    parts = last["content"]
    if any(part["type"] == "refusal" for part in parts):
        return
    value = parse_json("".join(part["text"] for part in parts))
    if text_format["type"] == "json_object":
        require(isinstance(value, dict), "the answer is no JSON object")
    elif text_format.get("schema") is not None:
        errors = jsonschema.Draft202012Validator(text_format["schema"]).iter_errors(value)
        require((error := next(errors, None)) is None, f"the answer is not of its schema: {error and error.message}")
