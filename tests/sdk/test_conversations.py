"""Conversations: made, read and changed by clients, added to by responses."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from server import long_reply, wait_for_end

OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}, "max_output_tokens": 20}


def user(text):
    return {"type": "message", "role": "user", "content": text}


@pytest.fixture
def conversation(client):
    return client.conversations.create()


@pytest.fixture
def texts(client, conversation):
    """Of all that was said."""

    def texts(**options):
        items = client.conversations.items.list(conversation.id, **({"order": "asc"} | options))
        return ["".join(part.text for part in item.content) for item in items]

    return texts


def missing(code, call):
    with pytest.raises(openai.NotFoundError) as caught:
        call()
    assert caught.value.code == code


def test_a_conversation_is_made_changed_and_deleted(client):
    made = client.conversations.create(metadata={"topic": "a"}, items=[user("Hello!")])
    assert (made.object, made.metadata) == ("conversation", {"topic": "a"})
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "b"})
    assert changed.metadata == {"topic": "b"} and changed.created_at == made.created_at
    assert client.conversations.retrieve(made.id) == changed
    deleted = client.conversations.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "conversation.deleted", True)
    for call in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        missing("conversation_not_found", lambda: call(made.id))
    missing("conversation_not_found", lambda: client.conversations.update(made.id, metadata={}))
    missing("conversation_not_found", lambda: client.conversations.items.create(made.id, items=[user("Hello!")]))
    missing("conversation_not_found", lambda: client.responses.create(input="Hi", conversation=made.id, **OPTIONS))


def test_items_are_added_read_and_deleted(client, conversation, texts):
    added = client.conversations.items.create(conversation.id, items=[user(f"{number}.") for number in range(3)])
    assert [item.content[0].text for item in added.data] == ["0.", "1.", "2."]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[2].id, False)
    assert texts() == ["0.", "1.", "2."]
    middle = added.data[1].id
    assert client.conversations.items.retrieve(middle, conversation_id=conversation.id) == added.data[1]
    assert client.conversations.items.delete(middle, conversation_id=conversation.id) == conversation
    assert texts() == ["0.", "2."]
    missing("item_not_found", lambda: client.conversations.items.retrieve(middle, conversation_id=conversation.id))
    missing("item_not_found", lambda: client.conversations.items.delete(middle, conversation_id=conversation.id))
    missing("item_not_found", lambda: client.conversations.items.list(conversation.id, after=middle))


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
def test_items_are_listed_page_by_page(client, conversation, texts, limit):
    expected = [f"{number}." for number in range(45)]
    for start in range(0, 45, 20):
        items = [user(text) for text in expected[start : start + 20]]
        client.conversations.items.create(conversation.id, items=items)
    assert texts(limit=limit) == expected
    assert texts(limit=limit, order="desc") == expected[::-1]


def test_too_many_items_at_once_are_refused(client, conversation, texts):
    with pytest.raises(openai.BadRequestError, match="20"):
        client.conversations.items.create(conversation.id, items=[user("Hello!")] * 21)
    assert texts() == []


@pytest.mark.parametrize("as_object", [False, True])
def test_a_response_goes_on_from_its_conversation_and_adds_to_it(client, conversation, texts, as_object):
    asked = {"id": conversation.id} if as_object else conversation.id
    first = client.responses.create(input="My name is Ada.", conversation=asked, **OPTIONS)
    assert first.conversation.id == conversation.id
    second = client.responses.create(input=[user("What is"), user("my name?")], conversation=asked, **OPTIONS)
    assert texts() == ["My name is Ada.", first.output_text, "What is", "my name?", second.output_text]
    history = [user("My name is Ada."), *first.output, user("What is"), user("my name?")]
    whole = client.responses.create(input=history, **OPTIONS)
    assert (second.output_text, second.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)


def test_every_kind_of_response_adds_to_its_conversation_in_order(client, conversation, texts):
    plain = client.responses.create(input="One?", conversation=conversation.id, **OPTIONS)
    stream = client.responses.create(input="Two?", conversation=conversation.id, stream=True, **OPTIONS)
    streamed = list(stream)[-1].response
    queued = client.responses.create(input="Three?", conversation=conversation.id, background=True, **OPTIONS)
    kept = wait_for_end(client, queued.id)
    unkept = client.responses.create(input="Four?", conversation=conversation.id, store=False, **OPTIONS)
    with client.responses.connect() as connection:
        connection.response.create(input="Five?", conversation=conversation.id, **OPTIONS)
        ended = ("response.completed", "response.incomplete")
        spoken = next(event for event in connection if event.type in ended).response
    replies = [reply.output_text for reply in (plain, streamed, kept, unkept, spoken)]
    questions = ["One?", "Two?", "Three?", "Four?", "Five?"]
    assert texts() == [text for turn in zip(questions, replies) for text in turn]


def test_a_list_that_grows_while_it_is_read_misses_nothing(client, conversation):
    client.conversations.items.create(conversation.id, items=[user(f"{number}.") for number in range(10)])
    seen, added = [], 0
    for item in client.conversations.items.list(conversation.id, order="asc", limit=4):
        seen.append(item.content[0].text)
        if added < 10:
            client.conversations.items.create(conversation.id, items=[user(f"{10 + added}.")])
            added += 1
    assert seen == [f"{number}." for number in range(20)]


def test_a_response_that_was_left_adds_nothing(client, conversation, texts):
    with client.responses.create(input="Hello!", conversation=conversation.id, stream=True, **OPTIONS) as stream:
        assert next(iter(stream)).type == "response.created"
    reply = client.responses.create(input="Again!", conversation=conversation.id, **OPTIONS)
    assert texts()[-2:] == ["Again!", reply.output_text]


@pytest.mark.parametrize("background", [False, True])
def test_a_conversation_may_be_deleted_while_a_reply_to_it_is_written(client, conversation, background):
    options = OPTIONS | long_reply(300) | {"max_output_tokens": 400}
    stream = client.responses.create(
        input="Hello!", conversation=conversation.id, stream=True, background=background, **options
    )
    with stream:
        next(event for event in stream if event.type == "response.output_text.delta")
        client.conversations.delete(conversation.id)
        ended = list(stream)[-1].response
    assert (ended.status, ended.store) == ("completed", True)
    assert client.responses.retrieve(ended.id) == ended


def test_an_item_is_in_a_conversation_once(client, conversation, texts):
    first = client.responses.create(input="Hello!", conversation=conversation.id, **OPTIONS)
    said, question = first.output[-1], user("And?")
    # A client that repeats the history though the conversation has it, one that refers to it, one that repeats itself.
    for input, index in [
        ([said.to_dict(), question], 0),
        ([question, {"type": "item_reference", "id": said.id}], 1),
        ([question | {"id": "msg_1"}, question | {"id": "msg_1"}], 1),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(input=input, conversation=conversation.id, **OPTIONS)
        assert caught.value.param == f"input[{index}]"
    assert texts() == ["Hello!", first.output_text]


def test_replies_given_at_once_are_all_added_whole(client, conversation, texts):
    def ask(number):
        return client.responses.create(input=f"{number}?", conversation=conversation.id, **OPTIONS).output_text

    with ThreadPoolExecutor(4) as clients:
        turns = dict(zip(range(8), clients.map(ask, range(8))))
    said = texts()
    pairs = dict(zip(said[::2], said[1::2]))
    assert pairs == {f"{number}?": text for number, text in turns.items()}
