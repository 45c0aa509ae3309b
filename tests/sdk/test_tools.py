"""Function calls: asked for by the model, answered by the client."""

import json

import pytest

QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
OPTIONS = {"model": "starter", "tools": [WEATHER], "temperature": 0, "reasoning": {"effort": "none"}}


def test_a_call_is_an_item_and_its_result_is_answered(client):
    asked = client.responses.create(input=[QUESTION], **OPTIONS)
    assert asked.status == "completed"
    call = asked.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert call.call_id and call.id and call.call_id != call.id
    assert asked.tools[0].name == "get_weather"

    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21, "sky": "clear"}'}
    answered = client.responses.create(input=[QUESTION, *asked.output, result], **OPTIONS)
    assert [item.type for item in answered.output] == ["message"]
    assert "21" in answered.output_text


def test_a_call_is_streamed(client):
    events = list(client.responses.create(input=[QUESTION], stream=True, **OPTIONS))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.function_call_arguments.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * deltas,
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    added, done, item = events[2].item, events[-3], events[-2].item
    assert (added.name, added.arguments, added.status) == ("get_weather", "", "in_progress")
    assert (added.id, added.call_id) == (item.id, item.call_id)
    streamed = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert streamed == done.arguments == item.arguments
    assert events[-1].response.output == [item]


def test_tool_choice_none_hides_the_tools(client):
    response = client.responses.create(input=[QUESTION], tool_choice="none", **OPTIONS)
    assert response.tool_choice == "none"
    assert {item.type for item in response.output} == {"message"}


@pytest.mark.parametrize("output", ["21", [{"type": "input_text", "text": "21"}]])
def test_a_result_may_be_text_or_parts(client, output):
    call = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    result = {"type": "function_call_output", "call_id": "call_1", "output": output}
    assert client.responses.create(input=[QUESTION, call, result], **OPTIONS).status == "completed"
