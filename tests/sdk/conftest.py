"""Starts the release binary once for all tests and stops it as a service manager would."""

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

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "ortolan"
START_SECONDS = 60
STOP_SECONDS = 60


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
def base_url():
    command = [BINARY, "serve", "--set", "server.port=0"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    try:
        lines = queue.Queue()
        threading.Thread(target=read_lines, args=(process.stdout, lines), daemon=True).start()
        yield wait_for_address(lines) + "/v1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
    finally:
        process.kill()


@pytest.fixture(scope="session")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client
