"""The judge is judged: it takes good streams and refuses each broken one with the rule that is broken."""

import copy
import json
import re

import pytest

import schemas
from stream_validator import Violation, check_response, check_stream

TOOLS = [
    {"type": "function", "name": "find", "description": None, "parameters": None, "strict": False},
    {"type": "function", "name": "list", "description": None, "parameters": None, "strict": False},
]
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 10,
    "completed_at": None,
    "status": "in_progress",
    "incomplete_details": None,
    "model": "tiny",
    "previous_response_id": None,
    "instructions": None,
    "output": [],
    "error": None,
    "tools": TOOLS,
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "reasoning": None,
    "usage": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "store": False,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}
USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 12,
}
CITATION = {"type": "url_citation", "url": "https://a.example", "start_index": 0, "end_index": 1, "title": "A"}
ERROR = {"type": "server_error", "code": "server_error", "message": "it broke", "param": None}


def logprob(token, logprob=-0.5):
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}


def likely(entry):
    """A part of one token."""
    return {"type": "output_text", "text": entry["token"], "annotations": [], "logprobs": [entry]}


def part_events(kind, item, output_index, part, deltas, stem, index=0, **fields):
    """Everything about one part, told in deltas."""
    index_key = {"content": "content_index", "summary": "summary_index"}[kind]
    family = {"content": "response.content_part", "summary": "response.reasoning_summary_part"}[kind]
    key = "refusal" if part["type"] == "refusal" else "text"
    place = {"item_id": item["id"], "output_index": output_index, index_key: index}
    empty = part | {key: ""} | {key: [] for key in ("annotations", "logprobs") if key in part}
    yield {"type": f"{family}.added", **place, "part": empty}
    for delta in deltas:
        entries = [entry for entry in part.get("logprobs", []) if entry["token"] == delta]
        told = {"logprobs": entries} if "logprobs" in part else {}
        yield {"type": f"{stem}.delta", **place, "delta": delta, **told}
    for number, annotation in enumerate(part.get("annotations", [])):
        name = "response.output_text.annotation.added"
        yield {"type": name, **place, "annotation_index": number, "annotation": annotation}
    told = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    yield {"type": f"{stem}.done", **place, key: part[key], **told, **fields}
    yield {"type": f"{family}.done", **place, "part": part}


def item_events(output_index, item, middle):
    zero = {"content": [], "summary": [], "arguments": "", "input": "", "status": "in_progress"}
    added = {key: zero.get(key, value) for key, value in item.items()}
    if item["type"] == "reasoning":
        added.pop("encrypted_content", None)
    yield {"type": "response.output_item.added", "output_index": output_index, "item": added}
    yield from middle
    yield {"type": "response.output_item.done", "output_index": output_index, "item": item}


def text_events(kind, key, item, output_index, deltas):
    place = {"item_id": item["id"], "output_index": output_index}
    for delta in deltas:
        yield {"type": f"response.{kind}.delta", **place, "delta": delta}
    name = {"name": item["name"]} if item["type"] == "function_call" else {}
    yield {"type": f"response.{kind}.done", **place, key: item[key], **name}


def thought(number, text):
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": f"rs_{number}", "summary": [], "content": content, "status": "completed"}


def summary(number, *texts):
    parts = [{"type": "summary_text", "text": text} for text in texts]
    item = {"type": "reasoning", "id": f"rs_{number}", "summary": parts, "status": "completed"}
    return item | {"encrypted_content": "e"}


def message(number, *tokens, annotations=(), **fields):
    part = {"type": "output_text", "text": "".join(tokens), "annotations": list(annotations)}
    part["logprobs"] = [logprob(token) for token in tokens]
    item = {"type": "message", "id": f"msg_{number}", "status": "completed", "role": "assistant", "content": [part]}
    return item | fields


def call(number, name, arguments, **fields):
    item = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": name}
    return item | {"arguments": arguments, "status": "completed"} | fields


def middle_events(index, item, raw_reasoning):
    """What is told between the first and the last event of an item."""
    if item["type"] == "function_call":
        return text_events("function_call_arguments", "arguments", item, index, re.findall("..?", item["arguments"]))
    if item["type"] == "custom_tool_call":
        return text_events("custom_tool_call_input", "input", item, index, item["input"].split(" "))
    names = {
        "output_text": "response.output_text",
        "refusal": "response.refusal",
        "reasoning_text": raw_reasoning,
        "summary_text": "response.reasoning_summary_text",
    }
    events = []
    for kind in ("content", "summary"):
        for number, part in enumerate(item.get(kind, [])):
            deltas = [token["token"] for token in part.get("logprobs", [])] or list(part.get("text") or part["refusal"])
            events += part_events(kind, item, index, part, deltas, names[part["type"]], number)
    return events


def whole(*items, status="completed", raw_reasoning="response.reasoning_text", before=(), settings={}, **end):
    """A good stream of these items; `settings` are of all its responses, what is in `end` only of the last."""
    response = RESPONSE | settings
    events = [{"type": "response.created", "response": response}, *before]
    events.append({"type": "response.in_progress", "response": response})
    for index, item in enumerate(items):
        events += item_events(index, item, middle_events(index, item, raw_reasoning))
    last = response | {"status": status, "output": items, "usage": USAGE}
    if status == "completed":
        last["completed_at"] = 11
    elif status == "incomplete":
        last["incomplete_details"] = {"reason": "max_output_tokens"}
    else:
        events.append({"type": "error", **{key: ERROR[key] for key in ("code", "message", "param")}, "error": ERROR})
        last["error"] = {"code": ERROR["code"], "message": ERROR["message"]}
    events.append({"type": f"response.{status}", "response": last | end})
    return json.loads(json.dumps(events))  # So that nothing is shared.


def numbered(events):
    return [{"type": event["type"], "sequence_number": number} | event for number, event in enumerate(events)]


def stream(events, end="data: [DONE]\n\n"):
    frames = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in numbered(events))
    return ("".join(frames) + end).encode()


REFUSAL = {"type": "refusal", "refusal": "No."}
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_9", "name": "run", "input": "ls"}
QUEUED = RESPONSE | {"status": "queued"}
EXTENSION = {"type": "ortolan:prompt_progress", "fraction": 0.5}
SCHEMA = {"type": "json_schema", "name": "a", "description": None, "schema": {"required": ["a"]}, "strict": True}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "find"}]}
GOOD = {
    "nothing is said": whole(),
    "text": whole(message(1, "Hi", "!")),
    "everything": whole(
        thought(1, "Hm."),
        message(1, "Wait", ".", annotations=[CITATION]),
        call(1, "find", '{"a": 1}'),
        call(2, "list", "{}"),
    ),
    "a phase": whole(message(1, "Wait.", phase="commentary"), message(2, "Here.", phase="final_answer")),
    "reasoning under Open Responses' name": whole(thought(1, "Hm."), raw_reasoning="response.reasoning"),
    "a summary in two parts": whole(summary(1, "First.", "Second."), message(1, "Hi")),
    "a refusal": whole(message(1, content=[REFUSAL])),
    "two parts": whole(message(1, content=[*message(1, "Hi")["content"], REFUSAL])),
    "a compaction": whole({"type": "compaction", "id": "cmp_1", "encrypted_content": "e"}),
    "a custom tool": whole(CUSTOM, settings={"tools": [{"type": "custom", "name": "run"}]}),
    "text is cut": whole(message(1, "Hi", status="incomplete"), status="incomplete"),
    "a call is cut": whole(message(1, "Hi"), call(1, "find", '{"a', status="incomplete"), status="incomplete"),
    "cut between items": whole(call(1, "find", "{}"), status="incomplete"),
    "a failure": whole(message(1, "Hi", status="incomplete"), status="failed", usage=None),
    "queued": [
        {"type": "response.created", "response": QUEUED},
        {"type": "response.queued", "response": QUEUED},
        *whole(message(1, "Hi"))[1:],
    ],
    "an extension": whole(before=[EXTENSION]),
    "an object": whole(message(1, '{"a": ', "1}"), settings={"text": {"format": {"type": "json_object"}}}),
    "a schema": whole(message(1, '{"a": ', "1}"), settings={"text": {"format": SCHEMA}}),
    "a required call": whole(call(1, "find", "{}"), settings={"tool_choice": "required"}),
    "an allowed call": whole(call(1, "find", "{}"), settings={"tool_choice": ALLOWED}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_stream_is_taken(name):
    assert check_stream(stream(GOOD[name]), schemas.check_event) == GOOD[name][-1]["response"]


def test_comments_are_no_events():
    raw = stream(GOOD["text"]).replace(b"event: response.in_progress", b": ping\n\nevent: response.in_progress")
    assert check_stream(b": hello\n\n" + raw)["status"] == "completed"


def test_a_stream_may_be_cut_anywhere_by_its_client_and_by_nobody_else():
    raw = stream(GOOD["everything"])
    for length in range(0, len(raw), 97):
        check_stream(raw[:length], is_cut=True)
        with pytest.raises(Violation, match="not complete|does not end"):
            check_stream(raw[:length])


def edit(name, index, *path, to):
    """One value of a good stream changed; `path` leads to it."""

    def broken():
        events = copy.deepcopy(GOOD[name])
        holder = events[index]
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = to
        return stream(events)

    return broken


def cut(name, start, stop=None, put=()):
    """A good stream without some events, or with others in their place."""

    def broken():
        events = copy.deepcopy(GOOD[name])
        events[start : start + 1 if stop is None else stop] = put
        return stream(events)

    return broken


def raw(name, old, new):
    return lambda: stream(GOOD[name]).replace(old, new, 1)


def ended(*items, **options):
    return lambda: stream(whole(*items, **options))


# Created, in progress, item added, part added, two deltas, text done, part done, item done, completed.
TEXT = GOOD["text"]
OTHER = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": []}
BROKEN = {
    # Frames.
    "no [DONE]": (lambda: stream(TEXT, end=""), "does not end with [DONE]"),
    "a frame after [DONE]": (lambda: stream(TEXT) + stream(TEXT), "a frame comes after [DONE]"),
    "half a frame": (lambda: stream(TEXT).removesuffix(b"\n"), "the last frame is not complete"),
    "another name": (raw("text", b"event: response.created", b"event: response.made"), "frame is called response.made"),
    "no name": (raw("text", b"event: response.created\n", b""), "not one event line and one data line"),
    "an id line": (raw("text", b"event: response.created", b"id: 1\nevent: response.created"), "not one event line"),
    "data in two lines": (raw("text", b'{"type": ', b'\ndata: {"type": '), "not one event line and one data line"),
    "carriage returns": (raw("text", b"\n", b"\r\n"), "a carriage return"),
    "no UTF-8": (raw("text", b"Hi", b"\xff"), "not UTF-8"),
    "no JSON": (raw("text", b'{"type"', b'{type"'), "not JSON"),
    "NaN": (raw("text", b'"top_p": 1.0', b'"top_p": NaN'), "NaN is not JSON"),
    "a key twice": (raw("text", b'{"type"', b'{"type": "a", "type"'), "a key comes twice"),
    # Lifecycle.
    "no created": (cut("text", 0), "the first event is not response.created"),
    "created twice": (cut("text", 1, 1, [TEXT[0]]), "response.created comes twice"),
    "no in_progress": (cut("text", 1), "output comes before response.in_progress"),
    "in_progress twice": (cut("text", 2, 2, [TEXT[1]]), "response.in_progress comes twice"),
    "queued late": (cut("queued", 3, 3, [GOOD["queued"][1]]), "response.queued does not follow"),
    "no terminal event": (cut("text", -1, len(TEXT)), "no terminal event"),
    "two terminal events": (cut("text", len(TEXT), len(TEXT), [TEXT[-1]]), "comes after the terminal one"),
    "an early end": (cut("nothing is said", 1), "ends before it is in progress"),
    "created as completed": (edit("text", 0, "response", "status", to="completed"), "the status is completed"),
    "another response": (edit("text", -1, "response", "id", to="resp_2"), "`id` of the response changed"),
    "another model": (edit("text", -1, "response", "model", to="large"), "`model` of the response changed"),
    "another time": (edit("text", 1, "response", "created_at", to=12), "`created_at` of the response changed"),
    "a number left out": (edit("text", 4, "sequence_number", to=5), "sequence_number is 5"),
    "a number from one": (edit("text", 0, "sequence_number", to=1), "sequence_number is 1"),
    "an unknown event": (edit("text", 4, "type", to="response.output_text.blob"), "no event of the protocol"),
    "an error key": (edit("text", 4, "error", to={}), "an `error` key is in an event that is none"),
    # Items.
    "an index from one": (edit("text", 2, "output_index", to=1), "output_index is 1"),
    "an index twice": (edit("everything", 10, "output_index", to=0), "output_index is 0"),
    "an item in an item": (cut("text", 4, 4, [TEXT[2]]), "added while another is open"),
    "an item never done": (cut("text", 8), "an item is still open at the end"),
    "an item never added": (cut("text", 2), "no item is open"),
    "an item added as done": (edit("text", 2, "item", "status", to="completed"), "an item is added as completed"),
    "an item added with content": (edit("text", 2, "item", "content", to=[1]), "an item is added with `content`"),
    "a call added with arguments": (edit("a required call", 2, "item", "arguments", to="{}"), "added with `arguments`"),
    "a wrong prefix": (lambda: stream(TEXT).replace(b"msg_1", b"message_1"), "the id of a message is message_1"),
    "an id twice": (ended(message(1, "a"), message(1, "b")), "two items are called msg_1"),
    "a call_id twice": (ended(call(1, "find", "{}"), call(2, "list", "{}", call_id="call_1")), "are called call_1"),
    "a call_id that is an id": (ended(call(1, "find", "{}", call_id="fc_1")), "call_id and id are the same"),
    "another id": (edit("text", 4, "item_id", to="msg_2"), "item_id is msg_2"),
    "an id that changes": (edit("text", 8, "item", "id", to="msg_2"), "`id` of the item changed"),
    "a name that changes": (edit("a required call", -2, "item", "name", to="list"), "`name` of the item changed"),
    "done in progress": (edit("text", 8, "item", "status", to="in_progress"), "an item is done as in_progress"),
    "an unknown item": (edit("text", 2, "item", "type", to="thing"), "'thing' is no type of an item"),
    "a user's message": (edit("text", 2, "item", "role", to="user"), "the role of a message is user"),
    # Parts and texts.
    "a part never added": (cut("text", 3), "no such part is open"),
    "a part never done": (cut("text", 7), "an item is done while its part is open"),
    "a part added twice": (cut("text", 4, 4, [TEXT[3]]), "a part is added while another is open"),
    "a part of another kind": (edit("text", 3, "part", "type", to="reasoning_text"), "no part of type reasoning_text"),
    "a part added with text": (edit("text", 3, "part", "text", to="Hi"), "a part is added with text"),
    "a part's index": (edit("text", 3, "content_index", to=1), "content_index is 1"),
    "a delta's index": (edit("text", 4, "content_index", to=1), "content_index is 1, and 0 is open"),
    "text never done": (cut("text", 6), "a part is done before its text is"),
    "a delta after done": (cut("text", 7, 7, [TEXT[5]]), "more comes after the text is done"),
    "a delta lost": (cut("text", 4), "`text` is not what was streamed"),
    "another text": (edit("text", 6, "text", to="Ho!"), "`text` is not what was streamed"),
    "another part": (edit("text", 7, "part", "text", to="Ho!"), "`text` of the part is not what was streamed"),
    "another item": (edit("text", 8, "item", "content", 0, "text", to="Ho!"), "`content` of the item is not"),
    "logprobs lost": (edit("text", 4, "logprobs", to=[]), "`logprobs` are not what was streamed"),
    "logprobs of a part lost": (edit("text", 7, "part", "logprobs", to=[]), "`logprobs` of the part is not"),
    "reasoning in a message": (edit("text", 4, "type", to="response.reasoning.delta"), "has no response.reasoning"),
    "two names of reasoning": (edit("everything", 4, "type", to="response.reasoning.delta"), "two names in one stream"),
    "a lost annotation": (
        cut("everything", next(n for n, event in enumerate(GOOD["everything"]) if "annotation" in event)),
        "`annotations` of the part is not what was streamed",
    ),
    "a lost summary": (edit("a summary in two parts", -8, "item", "summary", to=[]), "`summary` of the item is not"),
    "summary's index": (edit("a summary in two parts", 3, "summary_index", to=1), "summary_index is 1"),
    "other arguments": (edit("a required call", -2, "item", "arguments", to="[]"), "`arguments` of the item is not"),
    "arguments never done": (cut("a required call", -3, -2), "done before its text is"),
    "other arguments done": (edit("a required call", -3, "arguments", to="[]"), "`arguments` is not what was streamed"),
    "another name done": (edit("a required call", -3, "name", to="list"), "`name` of the call changed"),
    "another input": (edit("a custom tool", -2, "item", "input", to="rm"), "`input` of the item is not"),
    "arguments of a message": (
        cut("text", 3, 8, text_events("function_call_arguments", "arguments", OTHER | call(1, "f", "") | OTHER, 0, [])),
        "a message has no arguments",
    ),
    "broken arguments": (ended(call(1, "find", '{"a')), "not JSON"),
    "arguments in a list": (ended(call(1, "find", "[]")), "no JSON object"),
    # The end.
    "output left out": (edit("text", -1, "response", "output", to=[]), "the output is not the items that were done"),
    "an incomplete item first": (
        ended(message(1, "Hi", status="incomplete"), message(2, "Hi"), status="incomplete"),
        "an item follows an incomplete one",
    ),
    "incomplete in completed": (ended(message(1, "Hi", status="incomplete")), "of a completed response is incomplete"),
    "completed at no time": (edit("text", -1, "response", "completed_at", to=None), "completed_at is None"),
    "completed in the past": (edit("text", -1, "response", "completed_at", to=9), "completed_at is 9"),
    "incomplete at a time": (edit("text is cut", -1, "response", "completed_at", to=11), "completed_at is set"),
    "incomplete for no reason": (edit("text is cut", -1, "response", "incomplete_details", to=None), "details is None"),
    "another reason": (edit("text is cut", -1, "response", "incomplete_details", to={"reason": "x"}), "reason is x"),
    "no usage": (edit("text", -1, "response", "usage", to=None), "ended without usage"),
    "usage too early": (lambda: stream(whole(settings={"usage": USAGE})), "in progress has output or usage"),
    "a wrong sum": (edit("text", -1, "response", "usage", "total_tokens", to=13), "total_tokens is no sum"),
    "cached too much": (
        edit("text", -1, "response", "usage", "input_tokens_details", "cached_tokens", to=8),
        "more tokens are cached",
    ),
    "an error in completed": (edit("text", -1, "response", "error", to={"code": "a", "message": "b"}), "the error is"),
    "failed without an error": (edit("a failure", -1, "response", "error", to=None), "the error is None"),
    "failed without its event": (cut("a failure", -2, -1), "not told by an error event"),
    "failed otherwise": (edit("a failure", -1, "response", "error", "message", to="no"), "with another error"),
    "an error and no failure": (cut("a failure", -1, 99, [TEXT[-1]]), "followed by something else"),
    "a flat error": (edit("a failure", -2, "error", to=None), "without its `error` object"),
    "two errors in one": (edit("a failure", -2, "message", to="no"), "`message` differs"),
    # What was asked for.
    "too many tokens": (ended(settings={"max_output_tokens": 4}), "5 tokens where 4 may be"),
    "an impossible token": (
        ended(message(1, content=[likely(logprob("H", 1.5))])),
        "'H' is more than certain",
    ),
    "alternatives that nobody asked for": (
        ended(message(1, content=[likely(logprob("H") | {"top_logprobs": [logprob("H")]})])),
        "1 alternatives where 0 may be",
    ),
    "alternatives out of order": (
        ended(
            message(1, content=[likely(logprob("H") | {"top_logprobs": [logprob("H"), logprob("I", -0.1)]})]),
            settings={"top_logprobs": 2},
        ),
        "alternatives are not in order",
    ),
    "an unknown call": (ended(call(1, "burn", "{}")), "['burn'] is called and was not offered"),
    "a call of none": (ended(call(1, "find", "{}"), settings={"tool_choice": "none"}), "a call where none was allowed"),
    "no call of one": (ended(message(1, "Hi"), settings={"tool_choice": "required"}), "no call where one was required"),
    "a call of another": (
        ended(call(1, "find", "{}"), settings={"tool_choice": {"type": "function", "name": "list"}}),
        "['find'] is called and was not allowed",
    ),
    "two calls of one": (
        ended(call(1, "find", "{}"), call(2, "list", "{}"), settings={"parallel_tool_calls": False}),
        "several calls where one was allowed",
    ),
    "no object": (ended(message(1, "Hi"), settings={"text": {"format": {"type": "json_object"}}}), "not JSON"),
    "another object": (ended(message(1, "{}"), settings={"text": {"format": SCHEMA}}), "is not of its schema"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_refused(name):
    broken, message = BROKEN[name]
    with pytest.raises(Violation) as caught:
        check_stream(broken())
    assert message in str(caught.value)


MALFORMED = {
    "null for nothing": (edit("text", 8, "item", "phase", to=None), "Open Responses: item.phase: None is not"),
    "no logprobs": (edit("text", 7, "part", to={"type": "output_text", "text": "", "annotations": []}), "OpenAI: part"),
    "a number for a text": (edit("text", 4, "delta", to=5), "OpenAI: delta: 5 is not of type 'string'"),
    "an unknown event": (edit("text", 4, "type", to="response.blob"), "OpenAI knows no event response.blob"),
    "a key left out": (cut("text", 0, 1, [{"type": "response.created", "response": {}}]), "is a required property"),
    "no cache writes": (
        edit("text", -1, "response", "usage", "input_tokens_details", to={"cached_tokens": 0}),
        "'cache_write_tokens' is a required property",
    ),
    "an unknown effort": (edit("text", 0, "response", "reasoning", to={"effort": "huge", "summary": None}), "'huge'"),
    "a schema that is none": (
        edit("a schema", 0, "response", "text", "format", "schema", to=5),
        "response.text.format.schema: 5",
    ),
    "parameters that are none": (
        ended(settings={"tools": [{**TOOLS[0], "parameters": 5}]}),
        "response.tools.0.parameters: 5",
    ),
    "encrypted null": (
        edit("a summary in two parts", -8, "item", "encrypted_content", to=None),
        "Open Responses: item.encrypted_content: None",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_event_is_refused(name):
    broken, message = MALFORMED[name]
    with pytest.raises(Violation) as caught:
        check_stream(broken(), schemas.check_event)
    assert message in str(caught.value)


def test_a_plain_response_is_held_to_the_same():
    response = copy.deepcopy(GOOD["everything"][-1]["response"])
    check_response(response)
    response["output"][0]["status"] = "incomplete"
    with pytest.raises(Violation, match="not the last one"):
        check_response(response)
    response["output"] = []
    response["usage"]["total_tokens"] = 0
    with pytest.raises(Violation, match="no sum"):
        check_response(response)
