"""A client of the WebSocket of `/v1/responses` that hides nothing."""

import json

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import schemas

OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}}
QUESTION = "Count from 1 to 10."
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")
SECONDS = 60


class Socket:
    """One connection, in JSON."""

    def __init__(self, url, **options):
        # It does not read what it has no room for, and waits for the server to hang up, which gives it time to read on.
        self.connection = connect(url, max_queue=None, close_timeout=0.1, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def send(self, event):
        self.connection.send(json.dumps(event))

    def create(self, input=QUESTION, **options):
        self.send({"type": "response.create", "input": input} | OPTIONS | options)

    def receive(self):
        event = json.loads(self.connection.recv(timeout=SECONDS))
        if event["type"] != "error":
            schemas.check_event({key: value for key, value in event.items() if key != "stream_id"})
        return event

    def turn(self):
        """The events of one reply."""
        events = [self.receive()]
        while events[-1]["type"] not in TERMINAL:
            events.append(self.receive())
        return events

    def ask(self, input=QUESTION, **options):
        """The response of one turn."""
        self.create(input, **options)
        return self.turn()[-1]["response"]

    def refusal(self):
        """What a request is refused with that was sent."""
        event = self.receive()
        assert event["type"] == "error", event
        assert set(event["error"]) == {"type", "code", "message", "param"}
        return event["status"], event["error"]["code"], event["error"]["param"]

    def close_code(self):
        """Once the server has closed the connection."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.connection.recv(timeout=SECONDS)
        return self.connection.close_code
