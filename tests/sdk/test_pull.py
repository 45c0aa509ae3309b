"""`ortolan pull` against a hub on which things go wrong."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from server import BINARY, REPOSITORY
from hub_server import Fault, Hub, Repo, git_blob

ID = "acme/tiny-ONNX"
TINY = REPOSITORY / "tests/fixtures/tiny-gqa"
WHOLE_SECONDS = 60


def contents(num_bytes, seed):
    return random.Random(seed).randbytes(num_bytes)


def files():
    """Two variants, with all that a repository has beside them."""
    small = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    return small | {
        "README.md": b"# Tiny\n",
        "onnx/model.onnx": (TINY / "onnx/model.onnx").read_bytes(),
        "onnx/model_q4.onnx": contents(70_000, 1),
        "onnx/model_q4.onnx_data": contents(3_000_000, 2),
        "onnx/model_q4.onnx_data_1": contents(1_000_000, 3),
    }


def is_needed(path):
    return path.endswith((".json", ".jinja")) or "q4" in path


@pytest.fixture
def hub():
    hub = Hub()
    hub.repos[ID] = Repo(files())
    yield hub
    hub.close()


class Machine:
    """A home with a cache, and the commands that are run there."""

    def __init__(self, home, hub):
        self.home, self.hub = home, hub
        self.cache = home / "hub"
        self.folder = self.cache / f"models--{ID.replace('/', '--')}"

    def start(self, *arguments, settings=(), **variables):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ORTOLAN_"))}
        variables = kept | {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "XDG_STATE_HOME": str(self.home)} | variables
        command = [BINARY, *arguments]
        for setting in settings:
            command += ["--set", setting]
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def pull(self, repo=ID, *arguments, **options):
        """What it prints, and what it says."""
        process = self.start("pull", repo, *arguments, **options)
        printed, said = process.communicate(timeout=WHOLE_SECONDS)
        assert process.returncode == 0, said
        return printed, said

    def refusal(self, repo=ID, *arguments, **options):
        """One sentence."""
        process = self.start("pull", repo, *arguments, **options)
        printed, said = process.communicate(timeout=WHOLE_SECONDS)
        assert (process.returncode, printed) == (1, ""), said
        sentence = said.splitlines()[-1].removeprefix("ortolan: ")
        return sentence.replace(self.hub.url, "HUB").replace(str(self.cache), "CACHE")

    def snapshot(self, commit=None):
        """The files that a reader of the cache sees, and their contents."""
        root = self.folder / "snapshots" / (commit or self.hub.repos[ID].commit)
        found = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in found}

    def blobs(self):
        return list(self.folder.glob("blobs/*"))

    def incomplete(self):
        return [path for path in self.blobs() if path.suffix == ".incomplete"]


@pytest.fixture
def machine(tmp_path, hub):
    return Machine(tmp_path, hub)


def needed(repo):
    return {path: contents for path, contents in repo.files.items() if is_needed(path)}


def test_only_what_is_needed_is_fetched_into_the_shared_layout(hub, machine):
    printed, said = machine.pull()
    repo = hub.repos[ID]
    snapshot = machine.folder / "snapshots" / repo.commit
    assert printed == f'{snapshot}\n\n[[models]]\nname = "tiny-ONNX"\nrepo = "{ID}"\n'
    assert machine.snapshot() == needed(repo)
    assert (machine.folder / "refs/main").read_text() == repo.commit
    for path in needed(repo):
        assert os.readlink(snapshot / path) == "../" * (path.count("/") + 2) + f"blobs/{repo.etag(path)}"
    assert "fetching onnx/model_q4.onnx_data (2.8 MiB)" in said.splitlines()
    assert "100 % of 3.9 MiB" in said.splitlines()


def test_what_is_here_is_not_fetched_again(hub, machine):
    machine.pull()
    before = hub.bytes_served
    hub.repos[ID].commit = "beef" * 10
    hub.repos[ID].files["config.json"] += b"\n"
    machine.pull()
    assert hub.bytes_served - before == len(hub.repos[ID].files["config.json"])
    assert machine.snapshot() == needed(hub.repos[ID])


def test_a_variant_and_a_revision_are_taken_as_they_are_named(hub, machine):
    printed, _ = machine.pull(f"{ID}@v1", "--variant", "fp32")
    assert printed.endswith(f'repo = "{ID}@v1"\nvariant = "fp32"\n')
    assert "onnx/model.onnx" in machine.snapshot() and "onnx/model_q4.onnx" not in machine.snapshot()
    assert (machine.folder / "refs/v1").read_text() == hub.repos[ID].commit


def test_a_folder_of_a_repository(hub, machine):
    folder = "cpu_and_mobile/cpu-int4"
    hub.repos[ID] = Repo(
        {
            f"{folder}/genai_config.json": b"{}",
            f"{folder}/model.onnx": contents(100_000, 1),
            f"{folder}/model.onnx.data": contents(100_000, 2),
            f"{folder}/tokenizer.json": b"{}",
            "cuda/genai_config.json": b"{}",
            "cuda/model.onnx": contents(100_000, 3),
        }
    )
    for repo, variant in ((ID, ["--variant", "cpu-int4"]), (f"{ID}/{folder}", []), (ID, [])):
        printed, _ = machine.pull(repo, *variant)
        assert printed.splitlines()[0] == str(machine.folder / "snapshots" / hub.repos[ID].commit / folder)
        assert printed.endswith(f'repo = "{ID}/{folder}"\n')
    assert {path.split("/")[0] for path in machine.snapshot()} == {"cpu_and_mobile"}


def field(number, contents):
    """Of a protobuf message, with a length below 128."""
    return bytes([number << 3 | 2, len(contents)]) + contents


def test_data_files_of_any_name_are_fetched(hub, machine):
    location = field(1, b"location") + field(2, b"./weights.bin")
    graph = field(7, field(5, field(13, location)))
    expected = {"onnx/model.onnx": graph, "onnx/weights.bin": contents(100_000, 1), "tokenizer.json": b"{}"}
    hub.repos[ID].files = expected | {"onnx/other.bin": b"", "weights.bin": b""}
    in_the_way = machine.folder / "snapshots" / hub.repos[ID].commit / "onnx/weights.bin/folder"
    in_the_way.mkdir(parents=True)
    assert "cannot be written" in machine.refusal() and "onnx/model.onnx" not in machine.snapshot()
    shutil.rmtree(in_the_way.parent)
    machine.pull()
    assert machine.snapshot() == expected
    # As another tool may leave it.
    in_the_way.parent.unlink()
    assert "is not in CACHE" in machine.refusal(HF_HUB_OFFLINE="1")
    machine.pull()
    assert machine.snapshot() == expected


def test_a_pull_that_is_killed_goes_on_where_it_was(hub, machine):
    repo = hub.repos[ID]
    total = sum(map(len, needed(repo).values()))
    for point in sorted(random.Random(5).sample(range(1, total), 10)):
        process = hub.start_to_die(lambda: machine.start("pull", ID), point)
        process.communicate(timeout=WHOLE_SECONDS)
        assert process.returncode == -9
        # Whatever has its final name is whole.
        assert machine.snapshot().items() <= needed(repo).items()
        blobs = {path.name: path.read_bytes() for path in machine.blobs() if path.suffix != ".incomplete"}
        assert blobs.items() <= {repo.etag(path): contents for path, contents in repo.files.items()}.items()
    machine.pull()
    assert machine.snapshot() == needed(repo)
    assert machine.incomplete() == []
    # What was on its way when a process was killed is lost, and no more.
    assert hub.bytes_served < 1.5 * total
    assert any("range" in request.headers for request in hub.requests)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("_data", cut_at=at) for at in (0, 1, 50_000, 2_999_999)],
        [Fault("_data", stall_at=50_000)],
        [Fault("_data", status=status, headers={"Retry-After": "0"}) for status in (429, 500, 502, 503, 504)],
        [
            Fault("/revision/main", status=503, headers={"Retry-After": "0"}),
            Fault("/tree/" + Repo({}).commit, status=429, headers={"RateLimit": '"api";r=0;t=0'}),
        ],
        [Fault("tokenizer.json", cut_at=1000)],
        [Fault("_data", wrong_at=9)],
        [Fault("tokenizer.json", wrong_at=9)],
        [Fault("_data", cut_at=60_000, wrong_at=9)],
    ],
)
def test_what_goes_wrong_for_a_while_does_no_harm(hub, machine, faults):
    hub.faults = list(faults)
    machine.pull(settings=["hub.timeout=1"])
    assert hub.faults == []
    assert machine.snapshot() == needed(hub.repos[ID])
    assert machine.incomplete() == []


def test_a_partial_file_of_another_length_or_contents_is_thrown_away(hub, machine):
    repo = hub.repos[ID]
    (machine.folder / "blobs").mkdir(parents=True)
    large = machine.folder / "blobs" / f"{repo.etag('onnx/model_q4.onnx_data')}.incomplete"
    other = machine.folder / "blobs" / f"{repo.etag('onnx/model_q4.onnx_data_1')}.incomplete"
    large.write_bytes(bytes(3_000_001))
    other.write_bytes(bytes(1_000_000))
    machine.pull()
    assert machine.snapshot() == needed(repo)


def test_a_server_that_knows_no_ranges_sends_all_of_it_once_more(hub, machine):
    hub.faults = [Fault("_data", cut_at=50_000), Fault("_data", ignores_range=True)]
    machine.pull()
    assert len(hub.asked("_data", "cdn")) == 2
    assert machine.snapshot() == needed(hub.repos[ID])


def test_a_wait_is_told(hub, machine):
    hub.faults = [Fault("_data", status=429, headers={"Retry-After": "1"})]
    assert "it answers with status 429; trying again in 1 s\n" in machine.pull()[1]


def test_a_graph_comes_after_all_that_it_needs(hub, machine):
    in_the_way = machine.folder / "snapshots" / hub.repos[ID].commit / "onnx/model_q4.onnx_data"
    (in_the_way / "folder").mkdir(parents=True)
    assert machine.refusal().startswith(f"CACHE/{machine.folder.name} cannot be written: ")
    assert machine.snapshot().keys() == {path for path in needed(hub.repos[ID]) if "onnx" not in path}


def test_wrong_contents_are_never_kept(hub, machine):
    hub.faults = [Fault("_data", wrong_at=9)] * 2
    assert machine.refusal() == (
        f"onnx/model_q4.onnx_data of {ID} came with wrong contents twice and was deleted; "
        "try again later, or from another network"
    )
    assert machine.incomplete() == []
    assert "onnx/model_q4.onnx" not in machine.snapshot(), "the graph comes last"
    assert machine.refusal(settings=["hub.retries=0"], HF_HUB_OFFLINE="1").startswith("HF_HUB_OFFLINE is set and")


def test_a_stalled_or_cut_file_is_given_up_at_last(hub, machine):
    hub.faults = [Fault("_data", stall_at=0)]
    begin = f"onnx/model_q4.onnx_data of {ID} was not fetched to its end: "
    end = "; run the same command again to go on from there"
    sentence = machine.refusal(settings=["hub.retries=0", "hub.timeout=1"])
    assert sentence == f"{begin}nothing came for 1 seconds{end}"
    hub.faults = [Fault("_data", cut_at=70_000)]
    assert machine.refusal(settings=["hub.retries=0"]).startswith(begin)
    hub.faults = [Fault("_data", status=503)]
    assert machine.refusal(settings=["hub.retries=0"]) == f"{begin}it answers with status 503{end}"
    assert len(machine.incomplete()) == 1


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub, machine):
    hub.repos[ID].token = "hf_secret"
    expected = f"{ID} may not be read (401); accept its terms at HUB/{ID}, and set HF_TOKEN to a token of that account"
    assert machine.refusal() == expected
    assert machine.refusal(HF_TOKEN="hf_other") == expected
    machine.pull(HF_TOKEN="hf_secret")
    assert machine.snapshot() == needed(hub.repos[ID])
    assert all("authorization" not in request.headers for request in hub.requests if request.host == "cdn")
    (machine.home / "token").write_text("hf_secret\n")
    shutil.rmtree(machine.cache)
    machine.pull()


def test_refusals_say_what_to_do(hub, machine):
    assert machine.refusal("acme/other") == (
        "HUB has no model acme/other; check its name, and if it is private set HF_TOKEN to a token that may read it"
    )
    assert machine.refusal(f"{ID}@v2") == f"{ID} has no revision `v2`; take a branch, tag or commit that its page lists"
    sentence = machine.refusal(ID, "--variant", "int8")
    assert sentence == f"{ID} cannot be used: there is no variant `int8`; there are fp32 (622.4 KiB), q4 (3.8 MiB)"
    hub.faults = [Fault("/revision/main", status=401)]
    expected = "HUB does not take the token that it was sent; set HF_TOKEN to a valid one, or run `hf auth logout`"
    assert machine.refusal(HF_TOKEN="hf_old") == expected
    hub.faults = [Fault("config.json", status=403)]
    assert machine.refusal().startswith(f"{ID} may not be read (403); accept its terms at HUB/{ID}")
    hub.faults = [Fault("config.json", status=400)]
    assert re.fullmatch(r"HUB/\S+/config.json was refused with status 400; try again later, .*", machine.refusal())
    hub.repos[ID].files = {"model.onnx": b"", "vocab.json": b"{}"}
    assert machine.refusal() == (
        f"{ID} has no tokenizer.json beside its graph, and no model is served without; take another export"
    )
    hub.repos[ID].files = {"model.safetensors": b""}
    assert machine.refusal() == (
        f"{ID} cannot be used: there is no ONNX graph of a language model (such as onnx/model.onnx); "
        "export one with Optimum or the GenAI model builder"
    )


def test_a_model_larger_than_the_disk_is_not_begun(hub, machine):
    hub.repos[ID].entries["onnx/model_q4.onnx_data"] = {"lfs": {"oid": "0" * 64, "size": 1 << 60}}
    sentence = machine.refusal(ID, "--variant", "q4")
    expected = rf"{ID} needs 1073741824\.0 GiB and the disk of CACHE\S+ has \S+ GiB left; free some, or set .*"
    assert re.fullmatch(expected, sentence), sentence
    assert hub.asked("config.json") == []


@pytest.mark.parametrize(
    "path", ["../../../.bashrc", "/etc/passwd", "onnx/../../x", "a\\..\\b", "a\nb", "onnx//model.onnx", "."]
)
def test_a_path_that_leads_elsewhere_is_refused(hub, machine, path):
    hub.repos[ID].files[path] = b""
    sentence = machine.refusal()
    assert f"the path {json.dumps(path)} would lead out of its folder" in sentence
    assert not machine.cache.exists()


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"oid": "../../x"}, "it gives no hash of config.json"),
        ({"lfs": {"oid": "AB" * 32, "size": 1}}, "it gives no hash of config.json"),
        ({"size": -1}, "invalid value: integer `-1`"),
        ({"path": 7}, "invalid type: integer `7`"),
    ],
)
def test_a_listing_that_is_none_is_refused(hub, machine, entry, message):
    hub.repos[ID].entries["config.json"] = entry
    assert message in machine.refusal()


def test_a_commit_that_is_none_is_refused(hub, machine):
    hub.repos[ID].commit = "../../../outside"
    assert "is no commit; check HF_ENDPOINT" in machine.refusal()


def test_a_huge_repository_is_refused(hub, machine):
    hub.repos[ID].files |= {f"{index:05}.txt": b"" for index in range(400)}
    assert "it lists more than 10000 files or 100 pages of them" in machine.refusal()


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "HUB/loop"])
def test_redirects_that_lead_nowhere_are_refused(hub, machine, location):
    fault = Fault("", status=302, headers={"Location": location.replace("HUB", hub.url)})
    hub.faults = [fault] * 10
    assert re.search("it redirects (to no address that can be trusted|more than 5 times)", machine.refusal())


def test_without_a_network_what_was_fetched_is_taken(hub, machine):
    machine.pull()
    printed, said = machine.pull(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert said == "" and printed.endswith(f'repo = "{ID}"\n')
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    again, said = machine.pull(settings=["hub.retries=0"], HF_ENDPOINT=endpoint)
    assert again == printed
    assert said.startswith(f"{endpoint} cannot be reached: ")
    sentence = machine.refusal("acme/other", HF_HUB_OFFLINE="1")
    assert sentence == "HF_HUB_OFFLINE is set and acme/other is not in CACHE; unset it for `ortolan pull acme/other`"


def test_two_pulls_at_once_fetch_everything_once(hub, machine):
    gate = threading.Event()
    hub.faults = [Fault("config.json", gate=gate)]
    first = machine.start("pull", ID)
    second = None
    try:
        while not hub.asked("/config.json"):
            assert first.poll() is None
        second = machine.start("pull", ID)
        assert any("another process fetches config.json; waiting for it" in line for line in second.stderr)
    finally:
        gate.set()
    for process in (first, second):
        process.communicate(timeout=WHOLE_SECONDS)
        assert process.returncode == 0
    assert machine.snapshot() == needed(hub.repos[ID])
    assert hub.bytes_served == sum(map(len, needed(hub.repos[ID]).values()))


def serve(machine, *settings, **variables):
    """The log until the server listens or gives up."""
    models = f'models=[{{ name = "tiny", repo = "{ID}", variant = "fp32" }}]'
    process = machine.start("serve", settings=["server.port=0", models, *settings], **variables)
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if "listening on http://" in line:
                break
        return "".join(log)
    finally:
        process.kill()
        process.communicate()


def test_a_model_is_served_from_its_repository(hub, machine):
    refused = serve(machine, "hub.download=false")
    expected = f"ortolan: {ID} has not been fetched and `hub.download` is false; run `ortolan pull {ID}`\n"
    assert refused.endswith(expected)
    assert hub.requests == []
    log = serve(machine)
    assert "fetching onnx/model.onnx" in log and "listening" in log
    # What is there is taken without a question.
    asked = len(hub.requests)
    assert "listening" in serve(machine, "hub.download=false")
    assert len(hub.requests) == asked
