"""What any server of the Responses API must do, asked as raw JSON by many clients at once.

That every answer keeps the protocol is checked in `conftest.py`; here is what each case is about. The cases are those
of the Open Responses compliance suite that need neither stored responses nor images, and some more.
"""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream_validator import read_frames

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": '{"temperature": 21, "sky": "clear"}'}


def user(text):
    return {"type": "message", "role": "user", "content": text}


def assistant(text, **fields):
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part], **fields}


ASK_WEATHER = user("What is the weather in Paris?")
WITH_PARTS = user([{"type": "input_text", "text": "Count from"}, {"type": "input_text", "text": " 1 to 10."}])
# Each is asked plain and as a stream.
REPLIES = {
    "basic": {"input": [user("Say hello in exactly three words.")]},
    "a string": {"input": "Count from 1 to 10."},
    "without reasoning": {"input": "Count from 1 to 10.", "reasoning": {"effort": "none"}},
    "no type": {"input": [{"role": "user", "content": "Hello!"}]},
    "parts": {"input": [WITH_PARTS]},
    "system prompt": {"input": [{"type": "message", "role": "system", "content": "Be brief."}, user("Hello!")]},
    "developer prompt": {"input": [{"type": "message", "role": "developer", "content": "Be brief."}, user("Hello!")]},
    "instructions": {"input": "Hello!", "instructions": "You are a pirate. Speak like one."},
    "many turns": {"input": [user("My name is Ada."), assistant("Hello, Ada!"), user("What is my name?")]},
    "phases": {
        "input": [
            user("My name is Ada."),
            assistant("I think about it.", phase="commentary"),
            assistant("Hello, Ada!", phase="final_answer"),
            user("What is my name?"),
        ]
    },
    "no phase": {"input": [user("Hello!"), assistant("Hello!", phase=None), user("How are you?")]},
    "cut": {"input": "Who are you?", "max_output_tokens": 3, "reasoning": {"effort": "none"}},
    "cut while reasoning": {"input": "Who are you?", "max_output_tokens": 3, "reasoning": {"effort": "medium"}},
    "a tool": {"input": [ASK_WEATHER], "tools": [WEATHER], "reasoning": {"effort": "none"}},
    "a tool and reasoning": {"input": [ASK_WEATHER], "tools": [WEATHER], "reasoning": {"effort": "medium"}},
    "no tool": {"input": [ASK_WEATHER], "tools": [WEATHER], "tool_choice": "none"},
    "a cut call": {
        "input": [ASK_WEATHER],
        "tools": [WEATHER],
        "reasoning": {"effort": "none"},
        "max_output_tokens": 12,
    },
    "a result": {"input": [ASK_WEATHER, CALL, RESULT], "tools": [WEATHER], "reasoning": {"effort": "none"}},
    "labels": {"input": "Hello!", "metadata": {"a": "b"}, "user": "ada", "max_output_tokens": 50, "top_p": 0.5},
    "warm": {"input": "Tell me a story.", "temperature": 1.5, "max_output_tokens": 40},
}
# The request, its status, and the type, the code and the field of the refusal.
REFUSALS = {
    "no input": ({}, 400, "invalid_request_error", "missing_required_parameter", "input"),
    "a number": ({"input": 1}, 400, "invalid_request_error", "invalid_type", "input"),
    "an unknown item": ({"input": [{"type": "mystery"}]}, 400, "invalid_request_error", None, "input"),
    "an unknown role": ({"input": [{"role": "king", "content": "Hello!"}]}, 400, "invalid_request_error", None, None),
    "a hot temperature": ({"input": "Hello!", "temperature": 9}, 400, "invalid_request_error", None, "temperature"),
    "another model": ({"input": "Hello!", "model": "missing"}, 404, None, "model_not_found", "model"),
    "another model, streamed": ({"input": "Hi", "model": "x", "stream": True}, 404, None, "model_not_found", "model"),
    "a result without its call": ({"input": [user("Hi"), RESULT]}, 400, "invalid_request_error", None, None),
    "a long prompt": ({"input": "word " * 20_000}, 400, "invalid_request_error", "context_length_exceeded", "input"),
    "not JSON": (b'{"input": ', 400, "invalid_request_error", None, None),
    "a list": (b"[]", 400, "invalid_request_error", None, None),
}


@pytest.fixture(scope="module")
def answers(base_url):
    """Status and body of every case, all of them asked at once."""

    def post(body):
        request = urllib.request.Request(f"{base_url}/responses", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read()

    asked = {name: body for name, (body, *_) in REFUSALS.items()}
    for name, body in REPLIES.items():
        for stream in (False, True):
            asked[name, stream] = {"model": "starter", "temperature": 0, "stream": stream} | body
    with ThreadPoolExecutor(max_workers=8) as clients:
        bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in asked.values()]
        return dict(zip(asked, clients.map(post, bodies)))


@pytest.fixture
def reply(request, answers):
    """The response, be it streamed or plain."""

    def reply(name, stream):
        status, body = answers[name, stream]
        assert status == 200, body
        return read_frames(body)[0][-1]["response"] if stream else json.loads(body)

    return reply


def said(response):
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def kinds(response):
    return [item["type"] for item in response["output"]]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("name", REPLIES)
def test_a_reply(reply, name, stream):
    response, body = reply(name, stream), REPLIES[name]
    is_cut = "cut" in name or body.get("max_output_tokens") and response["status"] == "incomplete"
    assert response["status"] == ("incomplete" if is_cut else "completed")
    assert response["model"] == "starter"
    assert response["output"]
    if name in ("a tool", "a tool and reasoning", "a cut call"):
        assert kinds(response)[-1] == "function_call"
        assert response["output"][-1]["name"] == "get_weather"
    elif name != "cut while reasoning":
        assert said(response).strip()
    if is_cut:
        assert response["usage"]["output_tokens"] == body["max_output_tokens"]


@pytest.mark.parametrize("name", [name for name in REPLIES if name != "warm"])
def test_a_stream_says_what_the_plain_reply_says(reply, name):
    streamed, plain = reply(name, True), reply(name, False)
    assert said(streamed) == said(plain)
    assert kinds(streamed) == kinds(plain)
    assert streamed["usage"]["output_tokens"] == plain["usage"]["output_tokens"]


def test_a_call_has_its_arguments(reply):
    assert json.loads(reply("a tool", True)["output"][-1]["arguments"]) == {"city": "Paris"}
    assert kinds(reply("no tool", True))[-1] == "message"
    assert "21" in said(reply("a result", True))


def test_prompts_are_read_as_they_are_meant(reply):
    def input_tokens(name):
        return reply(name, False)["usage"]["input_tokens"]

    assert said(reply("parts", False)) == said(reply("a string", False))
    assert input_tokens("parts") == input_tokens("a string")
    assert input_tokens("system prompt") > input_tokens("no type")
    assert input_tokens("many turns") > input_tokens("no type")


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(answers, name):
    _, status, error_type, code, param = REFUSALS[name]
    answered, body = answers[name]
    error = json.loads(body)["error"]
    assert answered == status
    for expected, key in ((error_type, "type"), (code, "code"), (param, "param")):
        assert expected in (None, error[key]), error
    assert error["message"]
