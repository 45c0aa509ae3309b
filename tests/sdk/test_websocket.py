"""The WebSocket of `/v1/responses`: turns, what a connection remembers, and how it ends."""

import contextlib
import json
import time

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import schemas
from server import Server, long_reply, wait_until
from stream_validator import check_stream
from websocket_client import OPTIONS, QUESTION, SECONDS, TERMINAL, Socket


@pytest.fixture
def socket(server):
    with Socket(server.websocket_url) as socket:
        yield socket


def said(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def without_identity(events):
    """What is the same for each run."""
    text = json.dumps(events)
    for event in events:
        response = event.get("response", {})
        for item in [response, *response.get("output", []), event.get("item", {})]:
            text = text.replace(item.get("id", "no id"), "ID")
    events = json.loads(text)
    for event in events:
        for key in ("created_at", "completed_at"):
            event.get("response", {}).pop(key, None)
        if usage := event.get("response", {}).get("usage"):
            usage["input_tokens_details"]["cached_tokens"] = 0
    return events


def test_the_sdk_speaks_over_a_websocket(client):
    with client.responses.connect() as connection:
        for question in (QUESTION, "Thanks!"):
            connection.response.create(input=question, **OPTIONS)
            ended = next(event for event in connection if event.type in TERMINAL)
            plain = client.responses.create(input=question, **OPTIONS)
            assert ended.response.output_text == plain.output_text


def test_the_sdk_follows_a_chain_over_a_websocket(client):
    with client.responses.connect() as connection:
        connection.response.create(input="My name is Ada. Remember it.", store=False, **OPTIONS)
        first = next(event for event in connection if event.type == "response.completed").response
        connection.response.create(input="What is my name?", previous_response_id=first.id, store=False, **OPTIONS)
        second = next(event for event in connection if event.type == "response.completed").response
        connection.response.create(input="What is my name?", previous_response_id=first.id, store=False, **OPTIONS)
        error = next(iter(connection))
    assert second.previous_response_id == first.id
    assert (error.type, error.status, error.error.code) == ("error", 400, "previous_response_not_found")


@pytest.mark.parametrize("options", [{}, {"reasoning": {"effort": "medium"}}, {"max_output_tokens": 3}], ids=str)
def test_events_are_those_of_a_stream(server, socket, options):
    socket.create(**options)
    events = socket.turn()
    frames = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    check_stream(frames.encode(), schemas.check_event)
    status, body = server.call("POST", "/responses", {"input": QUESTION, "stream": True} | OPTIONS | options)
    assert status == 200
    streamed = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    assert without_identity(events) == without_identity(streamed)


def test_turns_are_taken_one_after_the_other(socket):
    questions = [f"Count from 1 to {end}." for end in range(3, 8)]
    for question in questions:
        socket.create(question)
    turns = [socket.turn() for _ in questions]
    for turn in turns:
        assert [event["sequence_number"] for event in turn] == list(range(len(turn)))
        assert len({event["response"]["id"] for event in turn if "response" in event}) == 1
    assert [said(turn[-1]["response"]) for turn in turns] == [said(socket.ask(question)) for question in questions]


def test_no_more_than_so_many_turns_wait(socket):
    socket.create(**long_reply(1000))
    for _ in range(17):
        socket.create(max_output_tokens=1)
    refused = next(event for event in iter(socket.receive, None) if event["type"] == "error")
    assert (refused["status"], refused["error"]["code"]) == (429, "rate_limit_exceeded")
    # All others are answered.
    assert [socket.turn()[-1]["type"] for _ in range(17)] == ["response.completed"] + ["response.incomplete"] * 16


def test_the_last_response_can_be_gone_on_from_though_nothing_is_kept(socket):
    first = socket.ask("My name is Ada. Remember it.", store=False)
    second = socket.ask("What is my name?", store=False, previous_response_id=first["id"])
    history = [{"role": "user", "content": "My name is Ada. Remember it."}, *first["output"]]
    whole = socket.ask([*history, {"role": "user", "content": "What is my name?"}], store=False)
    assert said(second) == said(whole)
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    # Only the last one.
    socket.create(previous_response_id=first["id"], store=False)
    assert socket.refusal() == (400, "previous_response_not_found", "previous_response_id")


def test_a_chain_that_was_never_kept_can_be_long(server, socket):
    history, previous = [], None
    for number in range(4):
        question = {"role": "user", "content": f"My number is {number}."}
        chained = socket.ask([question], store=False, previous_response_id=previous)
        history.append(question)
        _, whole = server.call("POST", "/responses", {"input": history, "store": False} | OPTIONS)
        assert said(chained) == said(json.loads(whole))
        previous, history = chained["id"], history + chained["output"]


@pytest.mark.parametrize("store", [False, True])
def test_a_response_over_another_connection_has_to_be_kept(server, socket, store):
    first = socket.ask("My name is Ada. Remember it.", store=store)
    with Socket(server.websocket_url) as other:
        other.create("What is my name?", previous_response_id=first["id"])
        if store:
            assert other.turn()[-1]["response"]["previous_response_id"] == first["id"]
        else:
            assert other.refusal() == (400, "previous_response_not_found", "previous_response_id")


def test_a_turn_that_failed_takes_what_it_went_on_from_with_it(socket):
    first = socket.ask(store=False)
    stray = {"type": "function_call_output", "call_id": "call_unknown", "output": "21"}
    socket.create([stray], store=False, previous_response_id=first["id"])
    assert socket.refusal()[0] == 400
    socket.create(store=False, previous_response_id=first["id"])
    assert socket.refusal() == (400, "previous_response_not_found", "previous_response_id")
    assert socket.ask()["status"] == "completed"


def test_a_turn_that_failed_does_not_lose_what_is_kept(socket):
    first = socket.ask()
    socket.create(temperature=9, previous_response_id=first["id"])
    assert socket.refusal() == (400, "invalid_value", "temperature")
    assert socket.ask(previous_response_id=first["id"])["status"] == "completed"


def test_another_failure_leaves_the_last_response(socket):
    first = socket.ask(store=False)
    socket.create(temperature=9)
    assert socket.refusal()[0] == 400
    assert socket.ask(store=False, previous_response_id=first["id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("field", "value"),
    [("stream", True), ("stream", False), ("stream", None), ("stream_options", {}), ("background", False)],
)
def test_what_only_http_has_is_refused(socket, field, value):
    socket.create(**{field: value})
    assert socket.refusal() == (400, "unsupported_parameter", field)
    assert socket.ask()["status"] == "completed"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('{"type": "response.sing"}', (400, "invalid_value", "type")),
        ('{"input": "Hello!"}', (400, "invalid_value", "type")),
        ("[]", (400, "invalid_value", "type")),
        ("3", (400, "invalid_value", "type")),
        ('{"type": "response.create"', (400, "invalid_json", None)),
        ("", (400, "invalid_json", None)),
        ("[" * 10_000, (400, "invalid_json", None)),
        ('{"type": "response.create"}', (400, "missing_required_parameter", "input")),
        ('{"type": "response.create", "input": 3}', (400, "invalid_type", "input")),
        ('{"type": "response.create", "input": "Hi", "model": "missing"}', (404, "model_not_found", "model")),
        ('{"type": "response.create", "input": "Hi", "stream_id": ""}', (400, "invalid_value", "stream_id")),
        ('{"type": "response.create", "input": "Hi", "stream_id": "a b"}', (400, "invalid_value", "stream_id")),
        (
            '{"type": "response.create", "input": "Hi", "previous_response_id": 3}',
            (400, "invalid_type", "previous_response_id"),
        ),
    ],
)
def test_what_cannot_be_answered_does_not_close_the_connection(socket, message, expected):
    socket.connection.send(message)
    assert socket.refusal() == expected
    assert socket.ask(max_output_tokens=1)["status"] == "incomplete"


def test_the_name_of_a_stream_is_repeated(socket):
    socket.create("One?", stream_id="lane-1.a_B", max_output_tokens=2)
    socket.create("Two?", max_output_tokens=2)
    socket.create("Three?", stream_id="b", model="missing")
    assert {event.get("stream_id") for event in socket.turn()} == {"lane-1.a_B"}
    assert {event.get("stream_id") for event in socket.turn()} == {None}
    assert [event.get("stream_id") for event in socket.turn()] == ["b"]


def test_steering_is_refused_as_the_sdk_expects(client):
    with client.responses.connect() as connection:
        connection.response.create(input=QUESTION, **OPTIONS)
        ended = next(event for event in connection if event.type == "response.completed")
        connection.response.steer(input=[{"role": "user", "content": "Stop."}], previous_response_id=ended.response.id)
        failed = next(iter(connection))
        assert (failed.type, failed.error.code) == ("response.steer.failed", "steering_not_supported")
        assert failed.steer.previous_response_id == ended.response.id
        connection.response.create(input=QUESTION, **OPTIONS)
        assert next(event for event in connection if event.type in TERMINAL).type == "response.completed"


def test_a_binary_message_closes_the_connection(socket):
    socket.connection.send(json.dumps({"type": "response.create", "input": QUESTION}).encode())
    assert socket.close_code() == 1003


@pytest.mark.parametrize("in_fragments", [False, True])
def test_a_message_that_is_too_large_closes_the_connection(tmp_path, in_fragments):
    with Server(tmp_path, "server.max_body_bytes=10000") as server, Socket(server.websocket_url) as socket:
        assert socket.ask("word " * 1000, max_output_tokens=1)["status"] == "incomplete"
        text = json.dumps({"type": "response.create", "input": "word " * 3000})
        with contextlib.suppress(ConnectionClosed):
            socket.connection.send([text[:8000], text[8000:]] if in_fragments else text)
        assert socket.close_code() == 1009


def test_a_text_that_is_not_utf_8_closes_the_connection(socket):
    socket.connection.send(b'{"type": "\xff"}', text=True)
    assert socket.close_code() == 1007


def test_a_ping_is_answered_also_while_a_reply_is_written(socket):
    assert socket.connection.ping().wait(SECONDS)
    socket.create(**long_reply(300))
    assert socket.connection.ping().wait(SECONDS)
    assert socket.turn()[-1]["type"] == "response.completed"


def test_pages_of_other_origins_may_not_connect(tmp_path):
    allowed = "https://chat.example.org"
    with Server(tmp_path, f'server.allowed_origins=["{allowed}"]') as server:
        for origin in ("https://evil.example", "null", server.url + ".evil.example", "https://chat.example.org:444"):
            with pytest.raises(InvalidStatus) as caught:
                connect(server.websocket_url, origin=origin)
            answer = caught.value.response
            assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (403, "origin_not_allowed")
        for origin in (None, allowed, server.url):
            with Socket(server.websocket_url, origin=origin) as socket:
                assert socket.ask(max_output_tokens=1)


def test_no_more_than_so_many_connections_are_open(tmp_path):
    with Server(tmp_path, "server.max_websockets=2") as server:
        sockets = [Socket(server.websocket_url) for _ in range(2)]
        with pytest.raises(InvalidStatus) as caught:
            connect(server.websocket_url)
        answer = caught.value.response
        assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (503, "too_many_connections")
        assert answer.headers["retry-after"]
        sockets[0].connection.close()
        wait_until(lambda: connects(server), "a place for another connection")
        assert sockets[1].ask(max_output_tokens=1)


def connects(server):
    try:
        connect(server.websocket_url, close_timeout=0.1).close()
    except InvalidStatus:
        return False
    return True


def test_a_connection_ends_at_its_time_limit(tmp_path):
    with Server(tmp_path, "server.websocket_timeout=1") as server, Socket(server.websocket_url) as socket:
        assert socket.ask(max_output_tokens=1)
        assert socket.refusal() == (400, "websocket_connection_limit_reached", None)
        assert socket.close_code() == 1008


def test_a_plain_get_is_no_websocket(server):
    status, body = server.call("GET", "/responses")
    assert (status, json.loads(body)["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("politely", [True, False])
def test_leaving_frees_the_slot(tmp_path, politely):
    settings = ("engine.max_batch_size=1", "engine.max_waiting=1")
    with Server(tmp_path, *settings) as server:
        socket = Socket(server.websocket_url)
        socket.create(**long_reply(5000))
        while socket.receive()["type"] != "response.output_text.delta":
            pass
        if politely:
            socket.connection.close()
        else:
            socket.connection.socket.close()
        began = time.monotonic()
        status, _ = server.call("POST", "/responses", {"input": QUESTION} | OPTIONS)
        # What was left would have taken far longer.
        assert status == 200 and time.monotonic() - began < 4


def test_a_server_that_stops_closes_idle_connections_and_ends_its_replies(tmp_path):
    with Server(tmp_path) as server, Socket(server.websocket_url) as idle, Socket(server.websocket_url) as busy:
        busy.create(**long_reply(1500))
        busy.create()
        while busy.receive()["type"] != "response.output_text.delta":
            pass
        server.terminate()
        assert idle.close_code() == 1001
        assert busy.turn()[-1]["type"] == "response.completed"
        # What had not begun is not begun any more.
        assert busy.refusal()[:2] == (503, "service_unavailable")
        assert busy.close_code() == 1001
        server.stop()


def test_the_sdk_goes_on_over_another_connection_when_one_has_ended(tmp_path):
    with Server(tmp_path, "server.websocket_timeout=1") as server, server.client() as client:
        with client.responses.connect() as connection:
            connection.response.create(input=QUESTION, **OPTIONS)
            first = next(event for event in connection if event.type == "response.completed").response
            reached = next(event for event in connection if event.type == "error")
            assert reached.error.code == "websocket_connection_limit_reached"
        with client.responses.connect() as connection:
            connection.response.create(input="Thanks!", previous_response_id=first.id, **OPTIONS)
            assert next(event for event in connection if event.type in TERMINAL).type == "response.completed"
