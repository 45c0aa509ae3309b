"""Chat Completions and Completions through the OpenAI SDK."""

import json

import openai
import pydantic
import pytest

QUESTION = {"role": "user", "content": "Count from 1 to 10."}
WEATHER_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def ask(client):
    def ask(*messages, **options):
        settings = {"model": "starter", "temperature": 0, "reasoning_effort": "none"} | options
        return client.chat.completions.create(messages=messages or [QUESTION], **settings)

    return ask


def test_a_chat_says_what_a_response_says(client, ask):
    completion = ask()
    response = client.responses.create(
        model="starter", input=[QUESTION], temperature=0, reasoning={"effort": "none"}, store=False
    )
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == (response.output_text, "stop")
    assert completion.usage.completion_tokens == response.usage.output_tokens
    assert completion.usage.prompt_tokens == response.usage.input_tokens


def test_a_stream_adds_up_to_the_plain_reply(ask):
    plain = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], plain.usage.total_tokens)


def test_a_call_is_made_and_its_result_answered(ask):
    asked = ask(WEATHER_QUESTION, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    message = asked.choices[0].message
    (call,) = message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "clear"}'}
    answered = ask(WEATHER_QUESTION, message, result, tools=[WEATHER])
    assert "21" in answered.choices[0].message.content


def test_the_helper_puts_a_streamed_call_together(client):
    with client.chat.completions.stream(
        model="starter", messages=[WEATHER_QUESTION], tools=[WEATHER], temperature=0, reasoning_effort="none"
    ) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(completion.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_a_call_can_be_required(ask):
    completion = ask({"role": "user", "content": "Hello!"}, tools=[WEATHER], tool_choice="required", max_tokens=100)
    assert completion.choices[0].message.tool_calls[0].function.name == "get_weather"
    named = {"type": "function", "function": {"name": "get_weather"}}
    completion = ask({"role": "user", "content": "Hello!"}, tools=[WEATHER], tool_choice=named, max_tokens=100)
    assert completion.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_an_answer_is_parsed(client):
    class City(pydantic.BaseModel):
        name: str
        is_capital: bool

    completion = client.chat.completions.parse(
        model="starter",
        messages=[{"role": "user", "content": "Paris as JSON."}],
        response_format=City,
        max_tokens=200,
        temperature=0,
        reasoning_effort="none",
    )
    assert isinstance(completion.choices[0].message.parsed, City)


def test_choices_differ_by_their_seeds_and_are_the_same_again(ask):
    options = {"n": 3, "seed": 1, "temperature": 2, "max_tokens": 24}
    first, again = (ask({"role": "user", "content": "Tell me a story."}, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1


def test_stop_and_probabilities(ask):
    assert "4" not in ask(stop=["4"]).choices[0].message.content
    choice = ask(logprobs=True, top_logprobs=2).choices[0]
    said = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert said.decode() == choice.message.content
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    cut = ask(max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)


def test_a_text_is_gone_on_from(client):
    options = {"model": "starter", "prompt": "1 2 3 4", "max_tokens": 8, "temperature": 0}
    completion = client.completions.create(**options)
    assert (completion.object, completion.usage.completion_tokens <= 8) == ("text_completion", True)
    chunks = client.completions.create(stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == completion.choices[0].text


def test_what_is_wrong_is_the_sdks_error(client, ask):
    with pytest.raises(openai.BadRequestError) as refused:
        ask({"role": "critic", "content": "hi"})
    assert (refused.value.param, refused.value.code) == ("messages[0].role", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        ask(model="nowhere")
