"""Two processes that share a PostgreSQL database are one server to their clients."""

import os
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from server import Server, long_reply, wait_for_end

ADDRESS = os.environ.get("ORTOLAN_TEST_POSTGRES")
OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}}
QUESTION = "Count from 1 to 10."
LONG = OPTIONS | long_reply(2000)

pytestmark = pytest.mark.skipif(not ADDRESS, reason="ORTOLAN_TEST_POSTGRES is not set (see scripts/postgres)")


@pytest.fixture(scope="module")
def clients():
    """One of each process."""
    with Server(ADDRESS) as one, Server(ADDRESS) as other, one.client() as first, other.client() as second:
        yield first, second
        one.stop()
        other.stop()


@pytest.fixture
def one(clients):
    return clients[0]


@pytest.fixture
def other(clients):
    return clients[1]


def begin_long(client):
    """A job, when it has said something."""
    queued = client.responses.create(input=QUESTION, background=True, **LONG)
    with client.responses.retrieve(queued.id, stream=True) as events:
        next(event for event in events if event.type == "response.output_text.delta")
    return queued


def give_back(server, jobs):
    """Before their leases end, with which others would have to wait."""
    server.stop()
    given_back = {server.wait_for_line(r'a background response is left for later id="(\w+)"')[1] for _ in jobs}
    assert given_back == {job.id for job in jobs}


def lose(server, jobs):
    server.kill()


@pytest.mark.parametrize("end", [give_back, lose])
def test_the_jobs_of_a_process_that_ends_are_done_by_another(end):
    """Runs before the others start, which would do them, too."""
    with Server(ADDRESS) as server, server.client() as client:
        jobs = [begin_long(client) for _ in range(2)]
        with Server(ADDRESS) as heir, heir.client() as other:
            assert {other.responses.retrieve(job.id).status for job in jobs} == {"in_progress"}
            with other.responses.retrieve(jobs[0].id, stream=True) as stream:
                next(event for event in stream if event.type == "response.output_text.delta")
                end(server, jobs)
                # What was told so far no longer holds.
                with pytest.raises(openai.APIError, match="begins it anew"):
                    list(stream)
            for job in jobs:
                ended = wait_for_end(other, job.id)
                assert (ended.status, ended.created_at) == ("completed", job.created_at)
                assert len(ended.output_text) == 2000
                assert list(other.responses.retrieve(job.id, stream=True))[-1].response == ended
            heir.stop()


def test_a_response_is_kept_for_both(one, other):
    made = one.responses.create(input="My name is Ada. Remember it.", **OPTIONS)
    assert other.responses.retrieve(made.id) == made
    assert other.responses.input_items.list(made.id).data == one.responses.input_items.list(made.id).data
    chained = other.responses.create(input="What is my name?", previous_response_id=made.id, **OPTIONS)
    assert one.responses.create(input="What?", previous_response_id=chained.id, **OPTIONS).status == "completed"
    other.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(made.id)


def test_sealed_reasoning_is_opened_by_both(one, other):
    options = OPTIONS | {"reasoning": {"effort": "medium"}, "store": False}
    made = one.responses.create(input=QUESTION, include=["reasoning.encrypted_content"], **options)
    sealed = made.output[0].to_dict() | {"content": []}
    history = [{"role": "user", "content": QUESTION}, sealed, *made.output[1:], {"role": "user", "content": "Thanks!"}]
    told = [client.responses.create(input=history, **options) for client in (one, other)]
    assert told[0].usage.input_tokens == told[1].usage.input_tokens
    assert told[0].output_text == told[1].output_text


def test_a_job_is_followed_from_the_other_process(one, other):
    queued = begin_long(one)
    told = list(other.responses.retrieve(queued.id, stream=True))
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert told[-1].type == "response.completed"
    assert list(one.responses.retrieve(queued.id, stream=True)) == told
    middle = len(told) // 2
    assert list(other.responses.retrieve(queued.id, stream=True, starting_after=middle)) == told[middle + 1 :]


def test_a_job_is_cancelled_from_the_other_process(one, other):
    queued = begin_long(one)
    with one.responses.retrieve(queued.id, stream=True) as stream:
        assert other.responses.cancel(queued.id).status == "cancelled"
        assert "response.completed" not in [event.type for event in stream]
    assert one.responses.retrieve(queued.id).status == "cancelled"


def test_a_conversation_is_added_to_from_both(one, other):
    conversation = one.conversations.create()

    def speak(number):
        client = (one, other)[number % 2]
        options = OPTIONS | {"conversation": conversation.id, "max_output_tokens": 8}
        reply = client.responses.create(input=f"{number}?", **options)
        return f"{number}?", reply.output_text

    with ThreadPoolExecutor(4) as speakers:
        turns = list(speakers.map(speak, range(8)))
    items = list(other.conversations.items.list(conversation.id, order="asc"))
    texts = ["".join(part.text for part in item.content) for item in items]
    assert sorted(zip(texts[::2], texts[1::2])) == sorted(turns)


def test_jobs_are_shared_and_each_is_done_once(one, other):
    jobs = [client.responses.create(input=QUESTION, background=True, **OPTIONS) for client in (one, other) * 8]
    ended = [wait_for_end(one, job.id) for job in jobs]
    assert {response.status for response in ended} == {"completed"}
    assert len({response.output_text for response in ended}) == 1
