"""The README's examples, run as they stand there, print what stands below them."""

import contextlib
import io
import json
import re
import subprocess
import urllib.request

from server import BINARY, REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080/v1"


def blocks():
    """Each fenced block's language and text, with the one that follows it."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return list(zip(found, found[1:]))


def without_identity(response):
    """What is the same for each run: ids and times are not, nor is what earlier requests have left in the cache."""
    response["usage"]["input_tokens_details"]["cached_tokens"] = 0
    for key in ("id", "created_at", "completed_at"):
        del response[key]
    for item in response["output"]:
        del item["id"]
    return response


def test_curl(base_url):
    ((_, command), (_, expected)) = next(pair for pair in blocks() if pair[1][0] == "json")
    body = re.search(r"-d '(.*)'", command)[1].encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base_url}/responses", body, headers)
    with urllib.request.urlopen(request) as answer:
        assert without_identity(json.load(answer)) == without_identity(json.loads(expected))


def test_python(base_url):
    examples = [(code, expected) for (language, code), (_, expected) in blocks() if language == "python"]
    assert len(examples) == 2
    names = {}
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code.replace(ADDRESS, base_url), names)
        assert printed.getvalue() == expected


def test_inspect():
    ((_, command), (_, expected)) = next(pair for pair in blocks() if "ortolan inspect" in pair[0][1])
    output = subprocess.run([BINARY, *command.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert without_memory(output.stdout) == without_memory(expected)


def without_memory(description):
    """How many slots would fit depends on the machine, and on what else runs there."""
    return re.sub(r"; \d+ would fit beside the weights", "", description)
