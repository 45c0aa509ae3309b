"""Starts the release binary once for all tests and stops it as a service manager would.

What the tests send goes through a proxy, so that every answer is held against the protocol, whatever its test looks at.
"""

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import openai
import pytest

import schemas
from recording_proxy import RecordingProxy
from stream_validator import Violation, check_response, check_stream, parse_json, require

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "ortolan"
START_SECONDS = 60
STOP_SECONDS = 60
# What the response repeats of a request that says it.
ECHOED = ("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature", "top_p", "user")


def read_lines(stream, lines):
    """Goes on after the server is up: a full pipe would stop it."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def wait_for_address(lines):
    log, deadline = [], time.monotonic() + START_SECONDS
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            pytest.fail(f"the server did not listen within {START_SECONDS} seconds:\n{''.join(log)}")
        if line is None:
            pytest.fail(f"the server ended before it listened:\n{''.join(log)}")
        log.append(line)
        if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
            return found[1]


@pytest.fixture(scope="session")
def proxy(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    command = [BINARY, "serve", "--set", "server.port=0", "--set", f"store.path={store}"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    try:
        lines = queue.Queue()
        threading.Thread(target=read_lines, args=(process.stdout, lines), daemon=True).start()
        yield RecordingProxy(wait_for_address(lines))
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
    finally:
        process.kill()


@pytest.fixture(scope="session")
def base_url(proxy):
    return proxy.url + "/v1"


@pytest.fixture(scope="session")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(autouse=True)
def every_answer_keeps_the_protocol(request):
    """Of each test that asks the server, and of each fixture made for it."""
    yield
    if "proxy" not in request.fixturenames:
        return
    for asked, answer in request.getfixturevalue("proxy").take_exchanges():
        if asked.line.startswith("POST /v1/responses "):
            try:
                check_answer(asked, answer)
            except Violation as violation:
                pytest.fail(f"{violation}\nasked: {asked.body[:2000]!r}\nanswered: {answer.body[-2000:]!r}")


def check_answer(asked, answer):
    require(answer.headers["x-request-id"], "an answer without x-request-id")
    content_type = answer.headers["content-type"]
    if not answer.line.startswith("HTTP/1.1 200 "):
        require(content_type == "application/json", f"a refusal is {content_type}")
        return schemas.check_error(parse_json(answer.body))
    body = json.loads(asked.body)
    if body.get("stream"):
        require(content_type.split(";")[0] == "text/event-stream", f"a stream is {content_type}")
        for chunk in answer.chunks:
            is_whole = chunk.startswith((b"event: ", b"data: ", b":")) and chunk.endswith(b"\n\n")
            require(is_whole, "a chunk of the transfer is not whole frames")
        response = check_stream(answer.body, schemas.check_event, is_cut=answer.is_left)
    elif answer.is_left:
        return
    else:
        require(content_type == "application/json", f"a reply is {content_type}")
        response = parse_json(answer.body)
        schemas.check_response(response)
        if body.get("background"):
            require(response["status"] == "queued", f"a background response begins as {response['status']}")
            return
        require(response["status"] in ("completed", "incomplete"), f"a reply is {response['status']}")
        check_response(response)
    for key in ECHOED:
        if response is not None and body.get(key) is not None:
            require(response.get(key) == body[key], f"`{key}` is {response.get(key)!r} and not {body[key]!r}")
