"""Text in, text out, through the OpenAI SDK. What the model says is taken from it, not assumed, wherever possible."""

import asyncio

import openai
import pytest

QUESTION = "Count from 1 to 10."
LONG_REPLY = "Who are you?"


@pytest.fixture
def ask(client):
    def ask(input=QUESTION, **options):
        return client.responses.create(model="starter", input=input, **({"temperature": 0} | options))

    return ask


def without_identity(response):
    """The response but for what differs between two equal runs."""
    value = response.to_dict()
    for key in ("id", "created_at", "completed_at"):
        del value[key]
    for item in value["output"]:
        del item["id"]
    if value["usage"]:
        del value["usage"]["input_tokens_details"]["cached_tokens"]
    return value


def final_response(events):
    assert events[-1].type in ("response.completed", "response.incomplete")
    return events[-1].response


def test_reply_is_complete(ask):
    response = ask()
    assert response.status == "completed"
    assert response.model == "starter"
    assert response.output_text
    assert response.error is None and response.incomplete_details is None
    assert response.created_at <= response.completed_at
    assert response.output[-1].type == "message"
    assert response.output[-1].role == "assistant"
    assert {item.status for item in response.output if item.type == "message"} == {"completed"}


def test_stream_ends_in_the_reply_that_is_given_unstreamed(ask):
    events = list(ask(stream=True))
    assert without_identity(final_response(events)) == without_identity(ask())
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1


def test_stream_tells_a_message_in_order(ask):
    events = list(ask(stream=True, reasoning={"effort": "none"}))
    assert [event.sequence_number for event in events] == list(range(len(events)))

    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-3].part.text == final_response(events).output_text
    assert events[-2].item == final_response(events).output[0]


def test_stream_helper_follows_the_reply(client, ask):
    with client.responses.stream(model="starter", input=QUESTION, temperature=0) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert snapshots[-1] == response.output_text == ask().output_text


def test_replies_given_at_once_equal_those_given_alone(base_url, ask):
    questions = [f"Count from 1 to {end}." for end in range(4, 10)]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
            replies = (client.responses.create(model="starter", input=text, temperature=0) for text in questions)
            return await asyncio.gather(*replies)

    together = [response.output_text for response in asyncio.run(ask_all())]
    assert together == [ask(question).output_text for question in questions]


def test_a_stream_may_be_left(ask):
    with ask(LONG_REPLY, stream=True, max_output_tokens=400) as events:
        assert next(iter(events)).type == "response.created"
    assert ask().status == "completed"


def test_async_stream(base_url, ask):
    async def stream():
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
            events = await client.responses.create(model="starter", input=QUESTION, temperature=0, stream=True)
            return [event async for event in events]

    assert final_response(asyncio.run(stream())).output_text == ask().output_text


def test_a_string_is_one_user_message(ask):
    expected = ask().output_text
    part = {"type": "input_text", "text": QUESTION}
    assert ask([{"role": "user", "content": QUESTION}]).output_text == expected
    assert ask([{"type": "message", "role": "user", "content": [part]}]).output_text == expected


def test_all_roles_are_read(ask):
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "The user's name is Ada."},
        {"role": "user", "content": "My lucky number is 7."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "OK, I will remember that."}]},
        {"role": "user", "content": "What is my lucky number?"},
    ]
    prompt_tokens = [ask(part, max_output_tokens=20).usage.input_tokens for part in (history, history[2:], history[-1:])]
    assert prompt_tokens == sorted(set(prompt_tokens), reverse=True)


def test_a_reply_can_be_sent_back_as_history(ask):
    conversation = [{"role": "user", "content": QUESTION}]
    conversation += ask(conversation).output
    conversation += [{"role": "user", "content": "Thanks!"}]
    assert ask(conversation).status == "completed"


def test_instructions_come_first_and_are_echoed(ask):
    response = ask(instructions="Be brief.")
    as_message = ask([{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}])
    assert response.instructions == "Be brief."
    assert response.output_text == as_message.output_text
    assert response.usage.input_tokens == as_message.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_max_output_tokens_cuts_the_reply(ask, stream):
    options = {"max_output_tokens": 3, "reasoning": {"effort": "none"}}
    reply = ask(LONG_REPLY, stream=stream, **options)
    response = final_response(list(reply)) if stream else reply
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.completed_at is None
    assert response.usage.output_tokens == 3
    assert response.output[-1].status == "incomplete"
    assert ask(LONG_REPLY, reasoning={"effort": "none"}).output_text.startswith(response.output_text)


def test_usage_adds_up(ask):
    usage = ask().usage
    assert usage.input_tokens > 0 and usage.output_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 <= usage.input_tokens_details.cached_tokens <= usage.input_tokens
    assert 0 <= usage.output_tokens_details.reasoning_tokens <= usage.output_tokens


def test_a_second_turn_goes_on_from_the_first(ask, client):
    story = [{"role": "user", "content": f"Remember the code word. It is {'very ' * 40}secret: lantern."}]
    first = ask(story)
    turns = [*story, *first.output, {"role": "user", "content": "What is the code word?"}]
    second = ask(turns)
    cached = second.usage.input_tokens_details.cached_tokens
    assert first.usage.input_tokens // 2 < cached < second.usage.input_tokens
    again = ask(turns)
    assert again.output_text == second.output_text
    assert again.usage.input_tokens_details.cached_tokens == again.usage.input_tokens - 1
    # Another key sees nothing of it.
    stranger = client.with_options(api_key="another")
    unknown = stranger.responses.create(model="starter", input=[*story, {"role": "user", "content": "?"}])
    assert unknown.usage.input_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("tier", ["priority", "default", "flex"])
def test_every_service_tier_says_the_same(ask, tier):
    response = ask(service_tier=tier, extra_body={"max_draft_tokens": 4})
    assert response.service_tier == tier
    assert response.output_text == ask().output_text


def test_settings_are_echoed(ask):
    metadata = {"ticket": "17", "emoji": "👍"}
    response = ask(temperature=0.5, top_p=0.9, max_output_tokens=200, metadata=metadata)
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.9, 200)
    assert response.metadata == metadata


def test_a_stop_string_ends_the_reply_before_it(ask):
    reply = ask(LONG_REPLY, reasoning={"effort": "none"}).output_text
    stop = reply[len(reply) // 2 :][:5]
    stopped = ask(LONG_REPLY, reasoning={"effort": "none"}, extra_body={"stop": [stop]})
    assert stopped.status == "completed"
    assert stopped.output_text == reply[: reply.index(stop)]


def test_a_seed_repeats_the_reply(ask):
    def draw(seed):
        return ask(temperature=2, max_output_tokens=40, extra_body={"seed": seed}).output_text

    replies = [draw(seed) for seed in range(4)]
    assert replies == [draw(seed) for seed in range(4)]
    assert len(set(replies)) > 1


def test_temperature_one_with_a_seed_repeats_too(ask):
    first, second = (ask(temperature=1, extra_body={"seed": 7}) for _ in range(2))
    assert without_identity(first) == without_identity(second)


def test_reasoning_is_kept_out_of_the_text(ask):
    response = ask(reasoning={"effort": "medium"})
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert "<think>" not in response.output_text and "</think>" not in response.output_text
    assert "".join(part.text for part in response.output[0].content).strip()


def test_reasoning_can_be_switched_off(ask):
    response = ask(reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.reasoning.effort == "none"


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["starter"]
    model = client.models.retrieve("starter")
    assert (model.id, model.object) == ("starter", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing")
