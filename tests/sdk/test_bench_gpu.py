"""What scripts/bench-gpu does without a GPU: weights for a graph that has none, and the table."""

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from server import BINARY, REPOSITORY, Server, WAIT_SECONDS, wait_until

SCRIPT = REPOSITORY / "scripts/bench-gpu"
FIXTURES = REPOSITORY / "tests/fixtures"
CASES = ["genai-qwen3", "genai-qwen3-int4"]


def load_script():
    loader = SourceFileLoader("bench_gpu", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True
bench_gpu = load_script()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Fixtures as scripts/make-gpu-graphs leaves its cases: without weights."""
    folder = tmp_path_factory.mktemp("graphs")
    for case in CASES:
        shutil.copytree(FIXTURES / case, folder / case, ignore=shutil.ignore_patterns("*.data"))
        shutil.copy(FIXTURES / "genai-qwen3/config.json", folder / case)
    return folder


def floats(data, tensor):
    return struct.unpack_from(f"<{tensor.length // 4}f", data, tensor.offset)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_as_many_as_the_graph_needs_and_rotary_ones_are_real(graphs, tmp_path, case):
    model = bench_gpu.prepare(case, graphs, tmp_path, processes=2)
    made = (model.folder / "model.onnx.data").read_bytes()
    real = (FIXTURES / case / "model.onnx.data").read_bytes()
    assert len(made) == len(real)
    weights = {weight.name: weight for weight in bench_gpu.read_graph(graphs / case / "model.onnx").weights}
    for name in ("cos_cache", "sin_cache"):
        assert floats(made, weights[name]) == pytest.approx(floats(real, weights[name]), abs=1e-4)
    norm = floats(made, weights["model.layers.1.input_layernorm.weight"])
    assert 0.9 <= min(norm) < max(norm) <= 1.1
    # Embedding and head are one matrix here, so every weight but the rotary ones is read in each step.
    rotary = weights["cos_cache"].length + weights["sin_cache"].length
    assert model.step_bytes == sum(weight.length for weight in weights.values()) - rotary


def test_weights_spread_alike_in_all_types_and_no_two_rows_are_the_same(graphs, tmp_path):
    bench_gpu.prepare("genai-qwen3", graphs, tmp_path, processes=1)
    bench_gpu.prepare("genai-qwen3-int4", graphs, tmp_path, processes=1)
    whole, parts = ({w.name: w for w in bench_gpu.read_graph(graphs / case / "model.onnx").weights} for case in CASES)
    data = (tmp_path / CASES[0] / "model.onnx.data").read_bytes()
    head = whole["lm_head.MatMul.weight"]
    values = floats(data, head)
    columns = head.dims[1]
    rows = {values[start : start + columns] for start in range(0, len(values), columns)}
    assert len(rows) == head.dims[0]

    data = (tmp_path / CASES[1] / "model.onnx.data").read_bytes()
    bits, scales = parts["lm_head.MatMul.weight_Q4"], parts["lm_head.MatMul.weight_scales"]
    packed = data[bits.offset : bits.offset + bits.length]
    per_block = bits.dims[-1]
    dequantized = [
        (nibble - 8) * scale
        for block, scale in enumerate(floats(data, scales))
        for byte in packed[block * per_block : (block + 1) * per_block]
        for nibble in (byte & 15, byte >> 4)
    ]
    for numbers in (values, dequantized):
        mean = sum(numbers) / len(numbers)
        deviation = (sum((value - mean) ** 2 for value in numbers) / len(numbers)) ** 0.5
        assert abs(mean) < 0.001 and deviation == pytest.approx(bench_gpu.WEIGHT_STD, rel=0.1)


def test_weights_are_the_same_whoever_writes_them_and_are_kept(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "PIECE", 1000)
    files = []
    for processes in (1, 3):
        folder = bench_gpu.prepare("genai-qwen3", graphs, tmp_path / str(processes), processes).folder
        files.append((folder / "model.onnx.data").read_bytes())
    assert files[0] == files[1]
    monkeypatch.setattr(bench_gpu, "write_weights", lambda *_: pytest.fail("written again"))
    bench_gpu.prepare("genai-qwen3", graphs, tmp_path / "3", processes=1)


def test_half_precision_types_are_packed_as_they_are_read():
    assert bench_gpu.packed([1.0, -0.5], bench_gpu.FLOAT16) == b"\x00\x3c\x00\xb8"
    assert bench_gpu.packed([1.0, -0.5], bench_gpu.BFLOAT16) == b"\x80\x3f\x00\xbf"


@pytest.mark.parametrize("case", CASES)
def test_a_graph_runs_on_its_made_weights(graphs, tmp_path, case):
    folder = bench_gpu.prepare(case, graphs, tmp_path / "work", processes=1).folder
    with Server(tmp_path / "store", f'models=[{{name="made",path="{folder}"}}]') as server:
        server.wait_for_line("model is ready", WAIT_SECONDS)
        reply = server.client().responses.create(model="made", input="Hello", max_output_tokens=16)
        assert reply.usage.output_tokens > 0
        server.stop()


DECODE = {"greedy.tokens_per_second": 150.0, "sampled.tokens_per_second": 140.0, "greedy.outside_runs": 0.031}


def result(case, system, batch, **values):
    return {"case": case, "system": system, "batch": batch, "values": values}


def test_the_table_compares_with_the_best_of_the_others_and_names_what_failed():
    results = [
        result("a", "ortolan", "prefill 512", prefill_tokens_per_second=9000.0),
        result("a", "ortolan", 8, **DECODE),
        result("a", "genai", 8, **{"greedy.tokens_per_second": 80.0}),
        result("a", "genai-graph", 8, **{"greedy.tokens_per_second": 100.0}),
        result("a", "genai", "prefill 512", prefill_tokens_per_second=6000.0),
        {"case": "a", "system": "ortolan", "batch": 32, "error": "ortolan: out | of memory"},
        result("a", "genai", 32, **{"greedy.tokens_per_second": 70.0}),
        result("a-paged", "ortolan", 8, **{"greedy.tokens_per_second": 120.0}),
        result("a-paged", "engine", 8, **{"greedy.tokens_per_second": 300.0}),
    ]
    rows = bench_gpu.table_rows(results, {("a", 8): 200.0, ("a", 32): None})
    assert [(row["case"], row["batch"], row["ratio"], row["share"]) for row in rows] == [
        ("a", "8", "1.50", "75%"),
        ("a", "32", "", ""),
        ("a", "prefill 512", "1.50", ""),
        ("a-paged", "8", "0.40", ""),
    ]
    assert (rows[0]["outside"], rows[0]["genai graph"], rows[0]["limit"]) == ("3.1%", "100.0", "200.0")
    assert rows[1]["notes"] == "ortolan: out / of memory"
    lines = bench_gpu.table(rows).splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1
    assert "genai top-p" not in lines[0], "a column without numbers is left out"


def test_the_limit_reads_weights_once_and_the_cache_of_each_row():
    model = bench_gpu.Model(None, step_bytes=10**9, token_bytes=10**5, vocab_size=512)
    assert bench_gpu.limit(model, 1, 0, 1000.0) == 1000.0
    assert bench_gpu.limit(model, 100, 100, 1000.0) == 50_000.0
    assert bench_gpu.limit(model, 1, 0, None) is None


def test_a_gpu_is_not_taken_for_another_whose_name_is_like_it():
    names = ["H100 80GB HBM3", "L40", "GH200 480GB", "A100-SXM4-80GB", "L4", "A10G"]
    known = [bench_gpu.known_gpu(f"NVIDIA {name}") for name in names]
    assert known == ["H100", "L40", None, "A100-SXM4-80GB", "L4", None]


def run(graphs, tmp_path, *arguments):
    """The script's output, its status, and the numbers that it wrote."""
    command = [sys.executable, SCRIPT, "--provider", "cpu", "--graphs", graphs, "--work", tmp_path / "work"]
    command += ["--json", tmp_path / "found.json", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout, done.returncode, json.loads((tmp_path / "found.json").read_text())


def test_what_ortolan_says_of_itself_is_what_the_table_shows():
    """On a CPU, with so many tokens that no sequence ends before they are counted."""
    sizes = ["--batch", "1,2", "--context", "16", "--tokens", "200", "--prompt", "32", "--rounds", "1"]
    options = ["--provider", "cpu", "--ortolan", str(BINARY), "--together", "--ttft"]
    args = bench_gpu.parser().parse_args([*options, *sizes])
    args.only = ["ortolan"]
    results = bench_gpu.Results(None, {})
    model = bench_gpu.Model(REPOSITORY / "models/starter", step_bytes=1, token_bytes=1, vocab_size=1024)
    bench_gpu.measure_case(args, "starter", model, results, bench_gpu.Clock(4 * WAIT_SECONDS, WAIT_SECONDS))
    assert [one["batch"] for one in results.found] == [1, 2, "prefill 32", "ttft 32"]
    values = [one["values"] for one in results.found]
    for decode in values[:2]:
        rates = ["greedy.tokens_per_second", "sampled.tokens_per_second", "floor_tokens_per_second"]
        assert all(0 < decode[name] for name in rates) and 0 < decode["greedy.outside_runs"] < 1
    assert 0 < values[2]["prefill_tokens_per_second"] and 0 < values[3]["ttft_ms"]
    rows = bench_gpu.table_rows(results.found, {})
    shown = ["case", "batch", "ortolan", "top-p", "outside", "graph alone", "notes"]
    assert [cell.strip() for cell in bench_gpu.table(rows).splitlines()[0].strip("|").split("|")] == shown
    assert rows[3]["notes"].endswith(" ms over HTTP")


def test_what_hangs_is_ended_and_what_is_no_graph_is_told(graphs, tmp_path):
    """With an ortolan that waits for what never comes, in a process of its own."""
    hanging, child = tmp_path / "ortolan", tmp_path / "child"
    hanging.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\nsleep 600 &\necho $! >{child}\nwait\n')
    hanging.chmod(0o755)
    broken = graphs / "broken"
    broken.mkdir(exist_ok=True)
    shutil.copy(graphs / "genai-qwen3/config.json", broken)
    (broken / "model.onnx").write_bytes((graphs / "genai-qwen3/model.onnx").read_bytes()[:1000])
    arguments = ["--only", "ortolan", "--ortolan", hanging, "--batch", "1", "--each", "5"]
    output, status, found = run(graphs, tmp_path, "--cases", "broken,genai-qwen3", *arguments)
    errors = [one["error"] for one in found["results"]]
    assert "is no ONNX file, or a part of one" in errors[0] and errors[1:] == ["no result within 5 s"]
    assert status == 1 and "| genai-qwen3" in output
    status_file = Path("/proc", child.read_text().strip(), "status")

    def has_ended():
        try:
            return "State:\tZ" in status_file.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(has_ended, "the end of what the hanging binary has started")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", "0"], "argument --rounds: it has to be at least 1"),
        (["--json", "nowhere/found.json"], "the folder of nowhere/found.json does not exist"),
        (["--only", "vllm"], "unknown in --only: vllm"),
        (["--ortolan", "nowhere/ortolan"], "nowhere/ortolan does not exist"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(arguments, says):
    command = [sys.executable, SCRIPT, "--ortolan", sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 2 and says in done.stderr


def test_what_cannot_be_measured_is_told_and_the_rest_goes_on(graphs, tmp_path):
    """With an ortolan that fails, a case without a graph, and no onnxruntime-genai."""
    broken = tmp_path / "ortolan"
    broken.write_text("#!/bin/sh\necho first >&2\necho 'ortolan: it does not run' >&2\nexit 1\n")
    broken.chmod(0o755)
    command = [sys.executable, SCRIPT, "--provider", "cpu", "--graphs", graphs, "--work", tmp_path / "work"]
    command += ["--cases", "missing,genai-qwen3", "--batch", "1,2", "--only", "ortolan", "--ortolan", broken]
    done = subprocess.run([*command, "--json", tmp_path / "found.json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    errors = [(one["case"], one["batch"], one["error"]) for one in found["results"]]
    assert errors[0][0] == "missing" and "make-gpu-graphs" in errors[0][2]
    assert errors[1:] == [("genai-qwen3", batch, "ortolan: it does not run") for batch in (1, 2)]
    assert found["command"][0] == str(SCRIPT) and done.stdout.count("it does not run") == 4
    assert not (tmp_path / "work/genai-qwen3").exists()
