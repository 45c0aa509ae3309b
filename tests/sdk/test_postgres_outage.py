"""A server whose PostgreSQL stops and comes back."""

import json
import os
import subprocess

import openai
import pytest

from server import REPOSITORY, Server, call, long_reply, wait_for_end, wait_until

SCRIPT = REPOSITORY / "scripts" / "postgres"
OPTIONS = {"model": "starter", "input": "Count from 1 to 4.", "temperature": 0, "reasoning": {"effort": "none"}}


class Postgres:
    """A throw-away one, of the test's own."""

    def __init__(self):
        self.address = subprocess.run([SCRIPT, "start"], check=True, capture_output=True, text=True).stdout.strip()

    def run(self, command):
        variables = os.environ | {"ORTOLAN_TEST_POSTGRES": self.address}
        subprocess.run([SCRIPT, command], check=True, env=variables)


@pytest.fixture
def postgres():
    if subprocess.run([SCRIPT, "installed"], check=False).returncode != 0:
        pytest.skip("PostgreSQL is not installed here, so none can be stopped")
    postgres = Postgres()
    yield postgres
    postgres.run("stop")


@pytest.fixture
def server(postgres):
    with Server(postgres.address) as server:
        yield server


def store_state(server):
    return json.loads(call("GET", f"{server.url}/ready")[1])["store"]


def is_refused(client, **options):
    try:
        client.responses.create(**OPTIONS | options)
    except openai.InternalServerError as refusal:
        assert (refusal.status_code, refusal.code) == (503, "store_unavailable")
        return True
    return False


def test_without_the_database_only_what_is_stored_is_refused(postgres, server):
    client = server.client()
    made = client.responses.create(**OPTIONS)

    postgres.run("pause")
    # Nobody has to try first: a server looks for work all the time.
    wait_until(lambda: store_state(server) == "unavailable", "the failure is known")
    assert is_refused(client) and is_refused(client, background=True)
    assert client.responses.create(**OPTIONS, store=False).output_text == made.output_text
    assert call("GET", f"{server.url}/ready")[0] == 200
    with pytest.raises(openai.InternalServerError):
        client.responses.retrieve(made.id)

    postgres.run("resume")
    wait_until(lambda: not is_refused(client), "all is stored again")
    assert store_state(server) == "ready"
    assert client.responses.retrieve(made.id) == made
    assert wait_for_end(client, client.responses.create(**OPTIONS, background=True).id).status == "completed"


def test_work_that_the_database_has_left_is_done_when_it_is_back(postgres, server):
    client = server.client()
    begun = client.responses.create(**OPTIONS, background=True, extra_body=long_reply(1000))
    with client.responses.retrieve(begun.id, stream=True) as events:
        next(event for event in events if event.type == "response.output_text.delta")
    postgres.run("pause")
    wait_until(lambda: store_state(server) == "unavailable", "the failure is known")
    postgres.run("resume")
    response = wait_for_end(client, begun.id)
    assert (response.status, len(response.output_text)) == ("completed", 1000)
