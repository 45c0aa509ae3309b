"""Responses that are kept: read, listed, gone on from, deleted."""

import json

import openai
import pytest

from server import wait_for_end

OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}}
QUESTION = "Count from 1 to 10."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


@pytest.fixture
def ask(client):
    def ask(input=QUESTION, **options):
        return client.responses.create(input=input, **(OPTIONS | options))

    return ask


def refusal(error, code, ask):
    with pytest.raises(error) as caught:
        ask()
    assert caught.value.code == code, caught.value
    return caught.value


def said(items):
    """Texts of messages with their roles, whether they are objects or came as such."""
    return [(item.role, "".join(part.text for part in item.content)) for item in items if item.type == "message"]


def ask_streamed(client, input):
    return list(client.responses.create(input=input, stream=True, **OPTIONS))[-1].response


def ask_in_the_background(client, input):
    queued = client.responses.create(input=input, background=True, **OPTIONS)
    return wait_for_end(client, queued.id)


def ask_over_a_websocket(client, input):
    with client.responses.connect() as connection:
        connection.response.create(input=input, **OPTIONS)
        return next(event for event in connection if event.type == "response.completed").response


WAYS = {
    "plain": lambda client, input: client.responses.create(input=input, **OPTIONS),
    "streamed": ask_streamed,
    "background": ask_in_the_background,
    "websocket": ask_over_a_websocket,
}


def test_a_response_is_kept_unless_it_is_not_to_be(client, ask):
    kept, unkept = ask(), ask(store=False)
    assert (kept.store, unkept.store) == (True, False)
    assert client.responses.retrieve(kept.id) == kept
    refusal(openai.NotFoundError, "response_not_found", lambda: client.responses.retrieve(unkept.id))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_retrieved_is_what_was_told(client, way):
    made = WAYS[way](client, QUESTION)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()


def test_numbers_are_kept_as_they_were_sent(client, ask):
    made = ask(temperature=0.7, top_p=0.9, extra_body={"presence_penalty": 0.1, "frequency_penalty": -0.3})
    found = client.responses.with_raw_response.retrieve(made.id)
    assert json.loads(found.text)["temperature"] == 0.7
    assert found.parse() == made


def test_sealed_reasoning_can_be_had_later(client, ask):
    made = ask(reasoning={"effort": "medium"})
    assert made.output[0].type == "reasoning" and not made.output[0].encrypted_content
    found = client.responses.retrieve(made.id, include=["reasoning.encrypted_content"])
    assert found.output[0].encrypted_content
    turns = [{"role": "user", "content": QUESTION}, *found.output, {"role": "user", "content": "Thanks!"}]
    assert ask(turns).status == "completed"


def test_a_deleted_response_is_gone(client, ask):
    made = ask()
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        refusal(openai.NotFoundError, "response_not_found", lambda: call(made.id))


@pytest.fixture
def listed(ask):
    """A response to five messages."""
    roles = ("developer", "user", "assistant", "user", "user")
    turns = [{"role": role, "content": f"{number}. Hello!"} for number, role in enumerate(roles)]
    return ask(turns, max_output_tokens=5)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_input_items_are_listed_page_by_page(client, listed, limit):
    texts = [f"{number}. Hello!" for number in range(5)]
    for order, expected in (("asc", texts), ("desc", texts[::-1])):
        pages = client.responses.input_items.list(listed.id, order=order, limit=limit)
        assert [text for _, text in said(pages)] == expected
    assert [text for _, text in said(client.responses.input_items.list(listed.id))] == texts[::-1]


def test_a_page_begins_behind_an_item(client, listed):
    items = client.responses.input_items.list(listed.id, order="asc").data
    assert [item.id.split("_")[0] for item in items] == ["msg"] * 5
    page = client.responses.input_items.list(listed.id, order="asc", after=items[1].id, limit=2)
    assert (page.data, page.has_more) == (items[2:4], True)
    page = client.responses.input_items.list(listed.id, order="desc", after=items[1].id)
    assert (page.data, page.has_more) == (items[:1], False)
    page = client.responses.input_items.list(listed.id, order="asc", after=items[4].id)
    assert (page.data, page.has_more) == ([], False)
    missing = lambda: client.responses.input_items.list(listed.id, after="msg_missing")
    refusal(openai.NotFoundError, "item_not_found", missing)


@pytest.mark.parametrize("way", WAYS)
def test_a_chain_goes_on_from_whatever_made_its_parent(client, ask, way):
    first = WAYS[way](client, "My name is Ada. Remember it.")
    second = ask("What is my name?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    whole = [{"role": "user", "content": "My name is Ada. Remember it."}, *first.output]
    told = ask([*whole, {"role": "user", "content": "What is my name?"}])
    assert (second.output_text, second.usage.input_tokens) == (told.output_text, told.usage.input_tokens)
    assert second.usage.input_tokens_details.cached_tokens > 0
    # Its own input, and nothing of what it goes on from.
    assert said(client.responses.input_items.list(second.id)) == [("user", "What is my name?")]


def test_a_chain_with_a_tool(client):
    options = OPTIONS | {"tools": [WEATHER]}
    asked = client.responses.create(input="What is the weather in Paris?", **options)
    call = asked.output[-1]
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}
    answered = client.responses.create(input=[result], previous_response_id=asked.id, **options)
    assert "21" in answered.output_text
    third = client.responses.create(input="And in Rome?", previous_response_id=answered.id, **options)
    assert third.usage.input_tokens > answered.usage.input_tokens > asked.usage.input_tokens
    assert third.usage.input_tokens_details.cached_tokens > 0
    unknown = result | {"call_id": "call_unknown"}
    with pytest.raises(openai.BadRequestError, match="call_unknown"):
        client.responses.create(input=[unknown], previous_response_id=asked.id, **options)


def test_instructions_are_not_inherited(ask):
    first = ask(instructions="You are a pirate. Speak like one.")
    second = ask("Hello!", previous_response_id=first.id)
    assert second.instructions is None
    history = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "Hello!"}]
    assert second.usage.input_tokens == ask(history).usage.input_tokens


def test_a_chain_needs_all_of_its_parents(client, ask):
    missing = lambda id: refusal(
        openai.BadRequestError, "previous_response_not_found", lambda: ask(previous_response_id=id)
    )
    assert missing("resp_missing").param == "previous_response_id"
    assert missing(ask(store=False).id)
    first = ask()
    second = ask("Thanks!", previous_response_id=first.id)
    client.responses.delete(first.id)
    missing(first.id), missing(second.id)
    assert client.responses.retrieve(second.id) == second


def test_one_parent_can_have_several_children(ask):
    parent = ask("My name is Ada. Remember it.")
    children = [ask("What is my name?", previous_response_id=parent.id) for _ in range(2)]
    assert children[0].output_text == children[1].output_text
    assert children[0].id != children[1].id


def test_a_conversation_and_a_parent_exclude_each_other(client, ask):
    conversation = client.conversations.create()
    both = lambda: ask(previous_response_id=ask().id, conversation=conversation.id)
    assert refusal(openai.BadRequestError, "invalid_value", both).param == "previous_response_id"


def test_items_can_be_referred_to(ask):
    first = ask("My name is Ada. Remember it.")
    reference = {"type": "item_reference", "id": first.output[-1].id}
    question = {"role": "user", "content": "What did you say?"}
    assert ask([reference, question]).output_text == ask([*first.output, question]).output_text
    chained = ask([reference, question], previous_response_id=first.id)
    assert chained.status == "completed"
    missing = {"type": "item_reference", "id": "msg_missing"}
    refusal(openai.NotFoundError, "item_not_found", lambda: ask([missing]))


@pytest.mark.parametrize("tool", [False, True])
def test_a_finished_response_is_told_anew(client, ask, tool):
    options = {"tools": [WEATHER]} if tool else {"reasoning": {"effort": "medium"}}
    made = ask("What is the weather in Paris?", **options)
    events = list(client.responses.retrieve(made.id, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response == made
    assert [event.item for event in events if event.type == "response.output_item.done"] == made.output
    for after in range(len(events)):
        assert list(client.responses.retrieve(made.id, stream=True, starting_after=after)) == events[after + 1 :]
    assert list(client.responses.retrieve(made.id, stream=True, starting_after=10**9)) == []


def test_the_helper_follows_a_finished_response(client, ask):
    made = ask()
    with client.responses.stream(response_id=made.id) as stream:
        assert stream.get_final_response().output_text == made.output_text


def test_queries_that_make_no_sense_are_refused(client, ask):
    made = ask()
    for query, param in [({"starting_after": -1, "stream": "true"}, "starting_after"), ({"limit": 0}, "limit")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.input_items.list(made.id, extra_query=query)
        assert caught.value.param == param
