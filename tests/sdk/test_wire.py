"""The bytes themselves against the Open Responses schema: SDKs forgive much that other clients do not."""

import json
import urllib.request
from pathlib import Path

import jsonschema
import pytest

SCHEMA = json.loads(Path(__file__).with_name("openresponses.schema.json").read_text())
RESPONSE_KEYS = SCHEMA["$defs"]["ResponseResource"]["required"]
# Raw reasoning is streamed under OpenAI's names, which Open Responses does not know.
OPENAI_EVENTS = {"response.reasoning_text.delta", "response.reasoning_text.done"}

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
BODIES = {
    "text": {"input": "Count from 1 to 10.", "reasoning": {"effort": "none"}},
    "reasoning": {"input": "Count from 1 to 10."},
    "cut": {"input": "Who are you?", "max_output_tokens": 3, "reasoning": {"effort": "none"}},
    "call": {"input": "What is the weather in Paris?", "tools": [WEATHER], "reasoning": {"effort": "none"}},
    "labelled": {"input": "Hello!", "instructions": "Be brief.", "metadata": {"a": "b"}, "max_output_tokens": 50},
}


@pytest.fixture(params=BODIES)
def body(request):
    return {"model": "starter", "temperature": 0} | BODIES[request.param]


def post(base_url, body):
    request = urllib.request.Request(
        base_url + "/responses", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return reply.headers, reply.read().decode("utf-8")


def check(part, value):
    """Validates against one part of the schema file, whose references look into its $defs."""
    jsonschema.validate(value, part | {"$defs": SCHEMA["$defs"]})


def test_the_reply_matches_the_schema(base_url, body):
    headers, text = post(base_url, body)
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    response = json.loads(text)
    check(SCHEMA["response"], response)
    assert len(RESPONSE_KEYS) == 31 and set(RESPONSE_KEYS) <= set(response)


def test_every_event_matches_the_schema(base_url, body):
    headers, text = post(base_url, body | {"stream": True})
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"]

    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert frames.pop() == "data: [DONE]"
    assert text.endswith("\n\n")
    for number, frame in enumerate(frames):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        if event["type"] not in OPENAI_EVENTS:
            check(SCHEMA["events"][event["type"]], event)
        if "response" in event:
            assert set(RESPONSE_KEYS) <= set(event["response"])
