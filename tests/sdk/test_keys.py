"""API keys and their limits as clients meet them, over HTTP and over a WebSocket."""

import hashlib

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server import Server, long_reply, wait_until
from websocket_client import Socket

OPTIONS = {"model": "starter", "input": "Who are you?", "temperature": 0, "max_output_tokens": 1}
KEY = "ork_a-key-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def key_setting(key, **entry):
    entry = {"name": repr(key[-5:]), "sha256": repr(hashlib.sha256(key.encode()).hexdigest())} | entry
    return "server.api_keys=[{ " + ", ".join(f"{name} = {value}" for name, value in entry.items()) + " }]"


@pytest.mark.parametrize("key", ["none", KEY.upper(), KEY + "x"])
def test_whoever_has_no_key_is_refused(tmp_path, key):
    with Server(tmp_path, key_setting(KEY)) as server:
        with pytest.raises(openai.AuthenticationError) as refused:
            server.client(api_key=key).responses.create(**OPTIONS)
        assert (refused.value.code, key in refused.value.message) == ("invalid_api_key", False)
        with pytest.raises(InvalidStatus) as refused:
            connect(server.websocket_url, additional_headers={"Authorization": f"Bearer {key}"})
        assert refused.value.response.status_code == 401
        assert server.client(api_key=KEY).responses.create(**OPTIONS).status == "incomplete"


def test_what_is_beyond_a_limit_is_told_how_long_to_wait(tmp_path):
    with Server(tmp_path, key_setting(KEY, requests_per_minute=2)) as server:
        client = server.client(api_key=KEY)
        first = client.responses.with_raw_response.create(**OPTIONS)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        client.responses.create(**OPTIONS)
        with pytest.raises(openai.RateLimitError) as refused:
            client.responses.create(**OPTIONS)
        headers = refused.value.response.headers
        assert 0 < int(headers["retry-after"]) <= 30
        assert headers["x-should-retry"] == "true"
        assert client.models.list().data[0].id == "starter", "reading is free"


def test_each_turn_counts_for_the_limits_of_its_key(tmp_path):
    with Server(tmp_path, key_setting(KEY, requests_per_minute=2)) as server:
        with Socket(server.websocket_url, additional_headers=HEADERS) as socket:
            for _ in range(2):
                assert socket.ask(max_output_tokens=1)["status"] == "incomplete"
            socket.create()
            assert socket.refusal() == (429, "rate_limit_exceeded", None)


def test_a_reply_that_is_left_counts_no_longer_as_running(tmp_path):
    with Server(tmp_path, key_setting(KEY, max_streams=1)) as server:

        def is_answered():
            with Socket(server.websocket_url, additional_headers=HEADERS) as socket:
                socket.create(max_output_tokens=1)
                return socket.turn()[-1]["type"] == "response.incomplete"

        with Socket(server.websocket_url, additional_headers=HEADERS) as socket:
            socket.create(**long_reply(3000))
            assert socket.receive()["type"] == "response.created"
            assert not is_answered()
        wait_until(is_answered, "an answer once the reply was left")
