"""Responses that nobody waits for: made, followed, cancelled, deleted, and ended by another process."""

import contextlib
import sqlite3

import openai
import pytest

from server import Server, long_reply, wait_for_end, wait_until

OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}}
QUESTION = "Count from 1 to 10."
# Takes some seconds.
LONG = OPTIONS | long_reply(2000)


def begin(client, options=OPTIONS, **more):
    return client.responses.create(input=QUESTION, background=True, **(options | more))


def is_running(client, response_id):
    return client.responses.retrieve(response_id).status == "in_progress"


def begin_long(client):
    """A job, when it has said something."""
    queued = begin(client, LONG)
    with client.responses.retrieve(queued.id, stream=True) as events:
        next(event for event in events if event.type == "response.output_text.delta")
    return queued


@pytest.fixture
def ended(client):
    """Every event of a background response."""
    return list(begin(client, stream=True))


def test_a_background_response_is_queued_and_ends(client):
    queued = begin(client)
    assert (queued.status, queued.background, queued.store) == ("queued", True, True)
    assert (queued.output, queued.usage) == ([], None)
    ended = wait_for_end(client, queued.id)
    assert (ended.status, ended.created_at) == ("completed", queued.created_at)
    assert ended.output_text == client.responses.create(input=QUESTION, **OPTIONS).output_text


def test_a_background_stream_begins_queued_and_says_what_is_kept(client, ended):
    kinds = [event.type for event in ended]
    assert (kinds[0], ended[0].response.status) == ("response.created", "queued")
    assert (kinds[1], kinds[-1]) == ("response.in_progress", "response.completed")
    assert client.responses.retrieve(ended[-1].response.id) == ended[-1].response


def test_a_stream_goes_on_after_each_of_its_events(client, ended):
    response_id = ended[-1].response.id
    assert list(client.responses.retrieve(response_id, stream=True)) == ended
    for after in range(len(ended)):
        assert list(client.responses.retrieve(response_id, stream=True, starting_after=after)) == ended[after + 1 :]


def test_a_stream_that_was_left_goes_on_while_the_response_is_written(client):
    with begin(client, LONG, stream=True) as stream:
        first = [event for event, _ in zip(stream, range(20))]
    response_id = first[0].response.id
    assert is_running(client, response_id)
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=first[-1].sequence_number))
    whole = list(client.responses.retrieve(response_id, stream=True))
    assert first + rest == whole
    assert whole[-1].type == "response.completed"
    assert len(whole[-1].response.output_text) == 2000


def test_many_follow_one_response(client):
    queued = begin(client, OPTIONS | long_reply(200))
    streams = [client.responses.retrieve(queued.id, stream=True) for _ in range(4)]
    told = [list(stream) for stream in streams]
    assert told[0][-1].type == "response.completed"
    assert all(events == told[0] for events in told)


def test_cancelling_ends_what_runs(client):
    queued = begin_long(client)
    with client.responses.retrieve(queued.id, stream=True) as stream:
        cancelled = client.responses.cancel(queued.id)
        kinds = [event.type for event in stream]
    assert cancelled.status == "cancelled"
    assert kinds[0] == "response.created" and "response.completed" not in kinds
    assert client.responses.retrieve(queued.id) == cancelled
    assert client.responses.cancel(queued.id) == cancelled


def test_what_waits_can_be_cancelled_and_deleted(tmp_path):
    with Server(tmp_path, "responses.background_jobs=1") as server, server.client() as client:
        running, cancelled, deleted, last = begin_long(client), *(begin(client) for _ in range(3))
        assert client.responses.cancel(cancelled.id).status == "cancelled"
        client.responses.delete(deleted.id)
        client.responses.cancel(running.id)
        assert wait_for_end(client, last.id).status == "completed"
        assert client.responses.retrieve(cancelled.id).status == "cancelled"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(deleted.id)


def test_what_has_ended_cannot_be_cancelled(client, ended):
    response = ended[-1].response
    assert client.responses.cancel(response.id) == response
    plain = client.responses.create(input=QUESTION, **OPTIONS)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.cancel(plain.id)
    assert caught.value.code == "response_not_background"


def test_deleting_ends_what_runs(client):
    queued = begin_long(client)
    with client.responses.retrieve(queued.id, stream=True) as stream:
        client.responses.delete(queued.id)
        assert "response.completed" not in [event.type for event in stream]
    for call in (client.responses.retrieve, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(queued.id)


def test_what_runs_cannot_be_gone_on_from_yet(client):
    queued = begin_long(client)
    with pytest.raises(openai.BadRequestError, match="has not ended") as caught:
        client.responses.create(input="Thanks!", previous_response_id=queued.id, **OPTIONS)
    assert caught.value.param == "previous_response_id"
    client.responses.cancel(queued.id)


def test_what_is_not_kept_cannot_be_written_in_the_background(client):
    with pytest.raises(openai.BadRequestError) as caught:
        begin(client, store=False)
    assert caught.value.param in ("background", "store")


def test_what_becomes_impossible_while_it_waits_fails_and_says_why(tmp_path):
    with Server(tmp_path, "responses.background_jobs=1") as server, server.client() as client:
        parent = client.responses.create(input=QUESTION, **OPTIONS)
        running = begin_long(client)
        waiting = begin(client, previous_response_id=parent.id)
        client.responses.delete(parent.id)
        client.responses.cancel(running.id)
        failed = wait_for_end(client, waiting.id)
        assert (failed.status, failed.previous_response_id) == ("failed", parent.id)
        assert parent.id in failed.error.message
        with pytest.raises(openai.APIError, match=parent.id):
            list(client.responses.retrieve(failed.id, stream=True))


def test_no_more_than_so_many_wait(tmp_path):
    settings = ("responses.background_jobs=1", "responses.max_background=2")
    with Server(tmp_path, *settings) as server, server.client() as client:
        jobs = [begin_long(client), begin(client)]
        with pytest.raises(openai.RateLimitError) as caught:
            begin(client)
        assert caught.value.code == "rate_limit_exceeded" and caught.value.response.headers["retry-after"]
        # Replies that somebody waits for are not held up.
        assert client.responses.create(input=QUESTION, **OPTIONS).status == "completed"
        client.responses.cancel(jobs[0].id)
        wait_until(lambda: begin_if_there_is_room(client), "room for another job")


def begin_if_there_is_room(client):
    try:
        return begin(client)
    except openai.RateLimitError:
        return None


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_a_job_outlives_its_process(tmp_path, end):
    with Server(tmp_path) as server, server.client() as client:
        running = begin_long(client)
        waiting = [begin(client) for _ in range(6)]
        end(server)
    with Server(tmp_path) as server, server.client() as client:
        ended = wait_for_end(client, running.id)
        assert (ended.status, ended.created_at) == ("completed", running.created_at)
        assert len(ended.output_text) == 2000
        assert {wait_for_end(client, job.id).status for job in waiting} == {"completed"}
        events = list(client.responses.retrieve(running.id, stream=True))
        # No number stands for events of two attempts.
        first = events[0].sequence_number
        assert first > 2000
        assert [event.sequence_number for event in events] == list(range(first, first + len(events)))
        assert events[-1].response == ended
        server.stop()


def test_whoever_follows_a_job_hears_its_end_before_the_server_stops(tmp_path):
    with Server(tmp_path) as server, server.client() as client:
        with begin(client, LONG, stream=True) as stream:
            next(event for event in stream if event.type == "response.output_text.delta")
            server.terminate()
            assert list(stream)[-1].type == "response.completed"
        server.stop()


def test_a_job_that_stops_the_process_each_time_is_given_up(tmp_path):
    job = None
    for attempt in (1, 2, 3):
        with Server(tmp_path) as server, server.client() as client:
            job = job or begin(client, LONG)
            wait_until(lambda: num_attempts(tmp_path) == attempt, f"attempt {attempt}")
            server.kill()
    with Server(tmp_path) as server, server.client() as client:
        ended = wait_for_end(client, job.id)
        assert ended.status == "failed" and "3 times" in ended.error.message


def num_attempts(folder):
    """Of the one job."""
    with contextlib.closing(sqlite3.connect(folder / "ortolan.db")) as database:
        return database.execute("SELECT attempt FROM responses").fetchone()[0]
