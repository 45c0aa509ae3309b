"""Replies that have to follow something: formats of the answer, required and strict calls."""

import json
import math
import re
from typing import Literal

import openai
import pydantic
import pytest

QUESTION = "What is the weather in Paris?"
BRIEF = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)
    tags: list[Literal["poet", "painter"]] = pydantic.Field(max_length=3)


def tool(name, strict=False, **properties):
    parameters = {
        "type": "object",
        "properties": properties or {"city": {"type": "string", "maxLength": 20}},
        "required": list(properties) or ["city"],
        "additionalProperties": False,
    }
    return {"type": "function", "name": name, "description": name, "parameters": parameters, "strict": strict}


WEATHER, TIME = tool("get_weather"), tool("get_time")


def calls(response):
    return [item for item in response.output if item.type == "function_call"]


def schema_format(schema, **fields):
    return {"format": {"type": "json_schema", "name": "answer", "schema": schema, **fields}}


def test_an_answer_is_parsed_into_a_class(client):
    response = client.responses.parse(input="Describe Ada.", text_format=Person, max_output_tokens=300, **BRIEF)
    assert isinstance(response.output_parsed, Person)


@pytest.mark.parametrize("effort", ["none", "medium"])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_follows_its_schema_while_reasoning_is_free(client, effort, temperature):
    schema = {"type": "object", "properties": {"n": {"enum": [3, 5]}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}
    schema["additionalProperties"] = False
    options = {"model": "starter", "reasoning": {"effort": effort}, "temperature": temperature, "max_output_tokens": 900}
    request = {"input": "Count from 1 to 5.", "text": schema_format(schema, strict=True), **options}
    with client.responses.stream(extra_body={"seed": 7}, **request) as stream:
        response = stream.get_final_response()
    answer = json.loads(response.output_text)
    assert answer.keys() == {"n", "ok"} and answer["n"] in (3, 5) and isinstance(answer["ok"], bool)
    assert response.text.format.name == "answer"


def test_other_formats(client):
    answer = client.responses.create(input="Hello!", text={"format": {"type": "json_object"}}, max_output_tokens=400, **BRIEF)
    if answer.status == "completed":
        assert isinstance(json.loads(answer.output_text), dict)
    else:
        assert answer.output_text.lstrip().startswith("{")

    pattern = {"format": {"type": "regex", "pattern": "(yes|no)/[0-9]{2}"}}
    answer = client.responses.create(input="Hello!", extra_body={"text": pattern}, **BRIEF)
    assert re.fullmatch("(yes|no)/[0-9]{2}", answer.output_text)

    grammar = {"format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a" B\nB: /[0-9]+;/'}}
    answer = client.responses.create(input="Hello!", extra_body={"text": grammar}, max_output_tokens=40, **BRIEF)
    assert re.match("a[0-9]+", answer.output_text)


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "strnig"}, "text.format"),
        ({"$ref": "https://example.org/schema.json"}, "text.format"),
        ({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5001)}}, "text.format"),
    ],
)
def test_a_schema_that_cannot_be_followed(client, schema, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(input="Hello!", text=schema_format(schema), **BRIEF)
    assert refused.value.code == "invalid_json_schema"
    assert refused.value.param.startswith(param)


def test_a_call_is_required(client):
    for effort in ("none", "medium"):
        options = {**BRIEF, "reasoning": {"effort": effort}}
        tools = [WEATHER, TIME]
        response = client.responses.create(
            input="Hello!", tools=tools, tool_choice="required", parallel_tool_calls=False, **options
        )
        assert response.status == "completed" and len(calls(response)) == 1
        assert json.loads(calls(response)[0].arguments).keys() == {"city"}
        assert {item.type for item in response.output} <= {"reasoning", "function_call"}


def test_a_named_tool_is_called(client):
    choice = {"type": "function", "name": "get_time"}
    response = client.responses.create(input=QUESTION, tools=[WEATHER, TIME], tool_choice=choice, **BRIEF)
    assert {call.name for call in calls(response)} == {"get_time"}
    with pytest.raises(openai.BadRequestError) as refused:
        choice = {"type": "function", "name": "missing"}
        client.responses.create(input=QUESTION, tools=[WEATHER], tool_choice=choice, **BRIEF)
    assert refused.value.param.startswith("tool_choice")


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_called(client, mode):
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "get_time"}]}
    response = client.responses.create(input=QUESTION, tools=[WEATHER, TIME], tool_choice=choice, **BRIEF)
    assert "get_weather" not in [call.name for call in calls(response)]
    assert mode == "auto" or calls(response)


def test_a_strict_tool_gets_what_its_schema_says(client):
    strict = tool("get_weather", strict=True, city={"enum": ["Oslo"]}, days={"type": "integer", "maximum": 9, "minimum": 1})
    response = client.responses.create(input=QUESTION, tools=[strict], parallel_tool_calls=False, **BRIEF)
    arguments = json.loads(calls(response)[0].arguments)
    assert arguments["city"] == "Oslo" and 1 <= arguments["days"] <= 9


def test_a_custom_tool_gets_text(client):
    shell = {"type": "custom", "name": "shell", "description": "Run a command."}
    response = client.responses.create(
        input="Hello!", tools=[shell], tool_choice={"type": "custom", "name": "shell"}, max_output_tokens=60, **BRIEF
    )
    assert [item.type for item in response.output] == ["custom_tool_call"]
    assert response.output[0].name == "shell" and not response.output[0].input.startswith('{"input"')


def test_a_namespace_comes_back_with_the_call(client):
    weather = {"type": "namespace", "name": "weather", "description": "Weather.", "tools": [WEATHER]}
    response = client.responses.create(input=QUESTION, tools=[weather], tool_choice="required", **BRIEF)
    call = calls(response)[0]
    assert (call.name, call.namespace) == ("get_weather", "weather")


def test_probabilities_of_an_answer(client):
    request = {"input": "Count from 1 to 5.", "include": ["message.output_text.logprobs"], "top_logprobs": 2, **BRIEF}
    with client.responses.stream(**request) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    part = response.output[-1].content[0]
    assert "".join(entry.token for entry in part.logprobs).strip() == part.text
    assert sum((delta.logprobs for delta in deltas), []) != []
    for entry in part.logprobs:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert bytes(entry.bytes).decode() == entry.token
        # At temperature 0, the best one was taken.
        assert math.isclose(entry.logprob, entry.top_logprobs[0].logprob)
        assert entry.top_logprobs[1].logprob <= entry.top_logprobs[0].logprob
    assert client.responses.create(input="Hello!", **BRIEF).output[0].content[0].logprobs == []


def test_sealed_reasoning_comes_back(client):
    options = {"model": "starter", "temperature": 0, "reasoning": {"effort": "medium"}}
    first = client.responses.create(input="Count from 1 to 5.", include=["reasoning.encrypted_content"], **options)
    reasoning = first.output[0]
    assert reasoning.type == "reasoning" and reasoning.encrypted_content
    sealed = {"type": "reasoning", "id": reasoning.id, "summary": [], "encrypted_content": reasoning.encrypted_content}
    history = [{"role": "user", "content": "Count from 1 to 5."}, sealed, first.output[1], {"role": "user", "content": "Hello!"}]
    assert client.responses.create(input=history, **options).status == "completed"


def test_tokens_are_counted_beforehand(client):
    request = {"model": "starter", "input": QUESTION, "tools": [WEATHER]}
    counted = client.responses.input_tokens.count(**request)
    assert counted.input_tokens == client.responses.create(**request).usage.input_tokens


def test_a_conversation_is_compacted_and_goes_on(client):
    history = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ]
    window = client.responses.compact(model="starter", input=history)
    assert window.object == "response.compaction"
    kinds = [item.type for item in window.output]
    assert kinds == ["message", "message", "compaction"]
    window = [item.model_dump(exclude_none=True, warnings=False) for item in window.output]
    response = client.responses.create(input=[*window, {"role": "user", "content": "Hello!"}], **BRIEF)
    assert response.status == "completed"


def test_a_long_conversation_is_compacted_before_it_is_answered(client):
    turns = [[{"role": "user", "content": "Say it. " * 40}, {"role": "assistant", "content": "It. " * 40}] for _ in range(8)]
    history = [*sum(turns, []), {"role": "user", "content": "Hello!"}]
    managed = [{"type": "compaction", "compact_threshold": 1000}]
    with client.responses.stream(input=history, context_management=managed, **BRIEF) as stream:
        response = stream.get_final_response()
    assert response.output[0].type == "compaction" and response.output[-1].type == "message"
    kept = [*response.output, {"role": "user", "content": "Hello!"}]
    again = client.responses.create(input=kept, context_management=managed, **BRIEF)
    assert again.output[0].type == "message"


def test_an_old_conversation_is_cut_where_that_is_allowed(client):
    turns = [[{"role": "user", "content": "Say it. " * 40}, {"role": "assistant", "content": "It. " * 40}] for _ in range(60)]
    history = [*sum(turns, []), {"role": "user", "content": "Hello!"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(input=history, **BRIEF)
    assert refused.value.code == "context_length_exceeded"
    response = client.responses.create(input=history, truncation="auto", max_output_tokens=20, **BRIEF)
    assert response.truncation == "auto" and response.usage.input_tokens < 4096
