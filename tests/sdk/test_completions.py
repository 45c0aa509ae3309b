"""Chat Completions and the older Completions through the OpenAI SDK, and that they say what Responses say."""

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

QUESTION = "Count from 1 to 10."
LONG_REPLY = "Who are you?"
WEATHER_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS = {"tools": [WEATHER], "messages": [WEATHER_QUESTION]}
PROMPT = "Once upon a time"


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    tags: list[Literal["poet", "painter"]] = pydantic.Field(max_length=3)


def asking(content=QUESTION, **options):
    defaults = {"model": "starter", "temperature": 0, "reasoning_effort": "none"}
    return defaults | {"messages": [{"role": "user", "content": content}]} | options


@pytest.fixture
def ask(client):
    return lambda *content, **options: client.chat.completions.create(**asking(*content, **options))


@pytest.fixture
def go_on(client):
    defaults = {"model": "starter", "prompt": PROMPT, "temperature": 0}
    return lambda **options: client.completions.create(**defaults | options)


def content(completion):
    return completion.choices[0].message.content


def without_identity(completion):
    """The completion but for what differs between two equal runs."""
    value = completion.to_dict()
    for key in ("id", "created"):
        del value[key]
    del value["usage"]["prompt_tokens_details"]["cached_tokens"]
    return value


def joined(chunks, index=0):
    """What all chunks say of one choice."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


def refusal(error, call, **options):
    with pytest.raises(error) as caught:
        call(**options)
    assert caught.value.request_id
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


def test_a_chat_says_what_a_response_says(ask, client):
    completion = ask()
    response = client.responses.create(model="starter", input=QUESTION, temperature=0, reasoning={"effort": "none"})
    assert (completion.object, completion.model) == ("chat.completion", "starter")
    assert completion.id.startswith("chatcmpl-")
    choice = completion.choices[0]
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert choice.message.content == response.output_text
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (response.usage.input_tokens, response.usage.output_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_the_same_and_ends_with_the_usage_that_was_asked_for(ask):
    plain = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == (content(plain), "stop")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert all(chunk.usage is None for chunk in ask(stream=True))


def test_reasoning_is_kept_out_of_the_content(ask):
    message = ask(reasoning_effort="medium").choices[0].message
    assert message.reasoning_content.strip() and "think>" not in message.content
    deltas = [chunk.choices[0].delta for chunk in ask(reasoning_effort="medium", stream=True)]
    streamed = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert streamed == message.reasoning_content


def test_the_stream_helper_follows_the_reply(client, ask):
    with client.chat.completions.stream(**asking()) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "content.delta"]
        completion = stream.get_final_completion()
    assert snapshots[-1] == content(completion) == content(ask())


def test_a_tool_is_called_and_its_result_is_answered(ask):
    asked = ask(**TOOLS).choices[0]
    assert asked.finish_reason == "tool_calls"
    [call] = asked.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "clear"}'}
    answered = ask(**TOOLS | {"messages": [WEATHER_QUESTION, asked.message, result]}).choices[0]
    assert (answered.finish_reason, answered.message.tool_calls) == ("stop", None)
    assert "21" in answered.message.content


def test_a_call_is_streamed(client, ask):
    [expected] = ask(**TOOLS).choices[0].message.tool_calls
    with client.chat.completions.stream(**asking(**TOOLS)) as stream:
        events = list(stream)
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (expected.function.name, expected.function.arguments)
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert (done.name, done.arguments) == ("get_weather", expected.function.arguments)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_may_be_required(ask, client, choice, stream):
    options = asking("Hello!", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
    if stream:
        with client.chat.completions.stream(**options) as events:
            told = events.get_final_completion().choices[0]
    else:
        told = client.chat.completions.create(**options).choices[0]
    [call] = told.message.tool_calls
    assert (told.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_tool_choice_none_hides_the_tools(ask):
    assert ask(tool_choice="none", **TOOLS).choices[0].message.tool_calls is None


def test_each_choice_is_a_reply_of_its_own(ask):
    options = {"n": 3, "temperature": 2, "seed": 7, "max_tokens": 40}
    completion = ask(**options)
    texts = [choice.message.content for choice in completion.choices]
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    chunks = list(ask(stream=True, **options))
    assert [joined(chunks, index)[0] for index in range(3)] == texts


def test_a_seed_repeats_the_reply(ask):
    replies = [[content(ask(temperature=2, max_tokens=40, seed=seed)) for seed in range(3)] for _ in range(2)]
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > 1


def test_a_stop_string_ends_the_reply_before_it(ask):
    reply = content(ask(LONG_REPLY))
    stop = reply[len(reply) // 2 :][:5]
    for stops in (stop, [stop, "never said"]):
        stopped = ask(LONG_REPLY, stop=stops)
        assert (content(stopped), stopped.choices[0].finish_reason) == (reply[: reply.index(stop)], "stop")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_reply(ask, limit):
    completion = ask(LONG_REPLY, **{limit: 3})
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 3)
    assert content(ask(LONG_REPLY)).startswith(content(completion))


@pytest.mark.parametrize("top", [0, 3])
def test_probabilities_are_told(ask, top):
    completion = ask(logprobs=True, top_logprobs=top)
    tokens = completion.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == content(completion)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == top for token in tokens)
    chunks = ask(logprobs=True, top_logprobs=top, stream=True)
    streamed = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert [token.token for tokens in streamed for token in tokens] == [token.token for token in tokens]


def test_an_answer_is_parsed_into_a_class(client):
    options = asking("Describe Ada.", response_format=Person, max_tokens=300)
    parsed = client.chat.completions.parse(**options).choices[0].message.parsed
    assert isinstance(parsed, Person)
    with client.chat.completions.stream(**options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_parts_are_joined(ask):
    half = len(QUESTION) // 2
    parts = [{"type": "text", "text": QUESTION[:half]}, {"type": "text", "text": QUESTION[half:]}]
    assert content(ask(parts)) == content(ask())


def test_async_replies_given_at_once_equal_those_given_alone(base_url, ask):
    questions = [f"Count from 1 to {end}." for end in range(4, 8)]

    async def read(client, question):
        return [chunk async for chunk in await client.chat.completions.create(**asking(question, stream=True))]

    async def read_all():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(read(client, question) for question in questions))

    together = [joined(chunks)[0] for chunks in asyncio.run(read_all())]
    assert together == [content(ask(question)) for question in questions]


def test_a_stream_may_be_left(ask):
    with ask(LONG_REPLY, stream=True, max_tokens=400) as chunks:
        next(iter(chunks))
    assert content(ask())


def test_a_prompt_is_gone_on_from(go_on):
    completion = go_on()
    [choice] = completion.choices
    assert (completion.object, choice.finish_reason) == ("text_completion", "length")
    assert completion.id.startswith("cmpl-")
    assert completion.usage.completion_tokens == 16
    chunks = list(go_on(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == choice.text
    assert chunks[-1].usage.total_tokens == completion.usage.total_tokens
    assert go_on(echo=True).choices[0].text == PROMPT + choice.text
    assert without_identity(go_on()) == without_identity(completion)


def test_several_prompts_equal_each_alone(go_on):
    prompts = [PROMPT, "The capital of France is"]
    together = go_on(prompt=prompts, max_tokens=8)
    assert [choice.index for choice in together.choices] == [0, 1]
    alone = [go_on(prompt=prompt, max_tokens=8) for prompt in prompts]
    assert [choice.text for choice in together.choices] == [completion.choices[0].text for completion in alone]
    assert together.usage.prompt_tokens == sum(completion.usage.prompt_tokens for completion in alone)


def test_probabilities_of_a_completion(go_on):
    choice = go_on(logprobs=2, max_tokens=6).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    lengths = [len(choice.logprobs.__dict__[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]
    assert lengths == [6] * 4
    assert all(token in top for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs))


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("messages", []),
        ("temperature", "hot"),
        ("n", 0),
        ("max_tokens", 0),
        ("stream", "yes"),
        ("tools", {}),
        ("tool_choice", "required"),
        ("stop", 5),
        ("top_logprobs", 1),
    ],
)
def test_wrong_values_name_their_field(ask, param, value):
    error = refusal(openai.BadRequestError, ask, extra_body={param: value})
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code in ("invalid_type", "invalid_value")


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_come_before_any_stream(ask, go_on, stream):
    missing = {"model": "missing", "stream": stream}
    for call in (ask, go_on):
        assert refusal(openai.NotFoundError, call, **missing).code == "model_not_found"
    long = "many words " * 10_000
    for call, param, value in ((ask, "messages", [{"role": "user", "content": long}]), (go_on, "prompt", long)):
        error = refusal(openai.BadRequestError, call, stream=stream, **{param: value})
        assert (error.code, error.param) == ("context_length_exceeded", param)


def test_what_is_not_supported_is_refused_by_name(ask, go_on):
    for call, param, value in ((ask, "store", True), (ask, "functions", []), (go_on, "suffix", "end")):
        error = refusal(openai.BadRequestError, call, extra_body={param: value})
        assert (error.code, error.param) == ("unsupported_parameter", param)
