"""Starts the release binary once for all tests and stops it as a service manager would.

What the tests send goes through a proxy, so that every answer is held against the protocol, whatever its test looks at.
"""

import json
from urllib.parse import parse_qs, urlsplit

import openai
import pytest

import schemas
from recording_proxy import RecordingProxy
from server import Server
from stream_validator import Violation, check_response, check_stream, parse_json, read_frames, require

# What the response repeats of a request that says it.
ECHOED = ("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature", "top_p", "user")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("store")) as server:
        yield server
        server.stop()


@pytest.fixture(scope="session")
def proxy(server):
    return RecordingProxy(server.url)


@pytest.fixture(scope="session")
def base_url(proxy):
    return proxy.url + "/v1"


@pytest.fixture(scope="session")
def client(base_url, server):
    """WebSockets go to the server itself: the proxy knows nothing of them."""
    direct = server.base_url.replace("http:", "ws:")
    options = {"api_key": "none", "max_retries": 0, "timeout": 120}
    with openai.OpenAI(base_url=base_url, websocket_base_url=direct, **options) as client:
        yield client


@pytest.fixture(autouse=True)
def every_answer_keeps_the_protocol(request):
    """Of each test that asks the server, and of each fixture made for it."""
    yield
    if "proxy" not in request.fixturenames:
        return
    for asked, answer in request.getfixturevalue("proxy").take_exchanges():
        method, target, _ = asked.line.split(" ")
        check = CHECKS.get((method, kind_of(target)))
        if check is None or answer.is_left and not answer.is_whole and not is_stream(answer):
            continue
        try:
            check_headers(answer)
            if not answer.line.startswith("HTTP/1.1 200 "):
                schemas.check_error(parse_json(answer.body))
            else:
                check(asked, answer)
        except Violation as violation:
            pytest.fail(f"{violation}\nasked: {asked.line} {asked.body[:2000]!r}\nanswered: {answer.body[-2000:]!r}")


def kind_of(target):
    """A path with `ID` in the place of each id."""
    folders = urlsplit(target).path.split("/")
    return "/".join("ID" if folder.startswith(("resp_", "conv_", "msg_")) else folder for folder in folders)


def is_stream(answer):
    return answer.headers["content-type"].split(";")[0] == "text/event-stream"


def check_headers(answer):
    require(answer.headers["x-request-id"], "an answer without x-request-id")
    if not is_stream(answer):
        require(answer.headers["content-type"] == "application/json", f"an answer is {answer.headers['content-type']}")
        return
    require(answer.line.startswith("HTTP/1.1 200 "), "a refusal is a stream")
    for chunk in answer.chunks:
        is_whole = chunk.startswith((b"event: ", b"data: ", b":")) and chunk.endswith(b"\n\n")
        require(is_whole, "a chunk of the transfer is not whole frames")


def check_created(asked, answer):
    body = json.loads(asked.body)
    is_background = body.get("background") is True
    require(is_stream(answer) == bool(body.get("stream")), "the answer is streamed and was not to be, or not and was")
    if is_stream(answer):
        response = check_stream(answer.body, schemas.check_event, answer.is_left, is_background)
    else:
        response = read_response(answer)
        expected = ("queued",) if is_background else ("completed", "incomplete")
        require(response["status"] in expected, f"a reply is {response['status']}")
    for key in ECHOED:
        if response is not None and body.get(key) is not None:
            require(response.get(key) == body[key], f"`{key}` is {response.get(key)!r} and not {body[key]!r}")


def check_retrieved(asked, answer):
    query = parse_qs(urlsplit(asked.line.split(" ")[1]).query)
    if query.get("stream") != ["true"]:
        read_response(answer)
    elif "starting_after" not in query:
        check_stream(answer.body, schemas.check_event, answer.is_left, is_background=True)
    elif not answer.is_left:
        events, is_done = read_frames(answer.body)
        require(is_done, "the stream does not end with [DONE]")
        first = int(query["starting_after"][0]) + 1
        for number, event in enumerate(events, first):
            require(event["sequence_number"] == number, f"sequence_number is {event['sequence_number']}, not {number}")
            schemas.check_event(event)


def read_response(answer):
    response = parse_json(answer.body)
    schemas.check_response(response)
    check_response(response)
    return response


def check_list(asked, answer):
    """A page, as OpenAI's API has it."""
    page = parse_json(answer.body)
    require(page["object"] == "list", f"a list is a {page['object']}")
    ids = [item["id"] for item in page["data"]]
    require(len(ids) == len(set(ids)) and all(ids), f"the ids of a list are {ids}")
    ends = (page["first_id"], page["last_id"])
    require(ends == ((ids[0], ids[-1]) if ids else (None, None)), f"a list begins and ends with {ends}")
    require(type(page["has_more"]) is bool, "a list does not say whether there is more")


CHECKS = {
    ("POST", "/v1/responses"): check_created,
    ("GET", "/v1/responses/ID"): check_retrieved,
    ("POST", "/v1/responses/ID/cancel"): lambda asked, answer: read_response(answer),
    ("GET", "/v1/responses/ID/input_items"): check_list,
    ("GET", "/v1/conversations/ID/items"): check_list,
    ("POST", "/v1/conversations/ID/items"): check_list,
}
