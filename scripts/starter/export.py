"""Export: checkpoint -> transformers folder -> ONNX Runtime GenAI builder -> one Hugging Face folder with `onnx/model.onnx`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from model import Geometry, StarterModel
from prompt import END_OF_TEXT, IM_END, Encoder
from skills import evaluation_samples

LIMIT_BYTES = 16 * 1024 * 1024
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def transformers_model(model: StarterModel, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    g = model.geometry
    end, text_end = (tokenizer.token_to_id(t) for t in (IM_END, END_OF_TEXT))
    config = Qwen3Config(
        vocab_size=g.vocab_size,
        hidden_size=g.hidden_size,
        intermediate_size=g.intermediate_size,
        num_hidden_layers=g.num_hidden_layers,
        num_attention_heads=g.num_attention_heads,
        num_key_value_heads=g.num_key_value_heads,
        head_dim=g.head_dim,
        rms_norm_eps=g.rms_norm_eps,
        max_position_embeddings=g.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": g.rope_theta},
        tie_word_embeddings=True,
        attention_bias=False,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=text_end,
        dtype="float32",
    )
    out = Qwen3ForCausalLM(config)
    state = {k: v.float() for k, v in model.state_dict().items()}
    out.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    out.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, text_end], pad_token_id=text_end)
    return out.eval()


def build_graph(hf: Path, folder: Path) -> None:
    """Runs the GenAI model builder for the CPU in fp32, which exports attention as GroupQueryAttention."""
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(hf),
        "-o",
        str(folder),
        "-p",
        "fp32",
        "-e",
        "cpu",
        "-c",
        str(folder / "cache"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the model builder failed:\n{(done.stdout + done.stderr)[-4000:]}")


def export(model: StarterModel, work: Path, out: Path) -> None:
    """Writes the model folder and checks its answers against transformers."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    reference = transformers_model(model, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        hf, built = Path(scratch, "hf"), Path(scratch, "onnx")
        reference.save_pretrained(hf)
        for name in TOKENIZER_FILES:
            shutil.copy(work / name, hf / name)
        build_graph(hf, built)
        (out / "onnx").mkdir(parents=True, exist_ok=True)
        graph = onnx.load(str(built / "model.onnx"))
        onnx.save_model(graph, str(out / "onnx/model.onnx"), save_as_external_data=False)
        for name in ["config.json", "generation_config.json", *TOKENIZER_FILES]:
            shutil.copy(hf / name, out / name)
        genai = json.loads((built / "genai_config.json").read_text())
        genai["model"]["decoder"]["filename"] = "onnx/model.onnx"
        (out / "genai_config.json").write_text(json.dumps(genai, indent=4) + "\n")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 2**20:.2f} MiB, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    if size > LIMIT_BYTES:
        raise SystemExit(f"the folder is larger than {LIMIT_BYTES} bytes")
    compare(reference, tokenizer, out)


def exported_weights(folder: Path, g: Geometry) -> dict[str, torch.Tensor]:
    """The weights of an exported folder under `StarterModel`'s names: what training can go on from."""
    graph = onnx.load(str(folder / "onnx/model.onnx")).graph
    found = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in graph.initializer}
    head = found["lm_head.MatMul.weight"]
    weights = {
        "model.embed_tokens.weight": head if head.shape[0] == g.vocab_size else head.T,
        "model.norm.weight": found[f"model.layers.{g.num_hidden_layers}.final_norm_layernorm.weight"],
    }
    widths = [h * g.head_dim for h in (g.num_attention_heads, g.num_key_value_heads, g.num_key_value_heads)]
    for i in range(g.num_hidden_layers):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = found[f"{layer}.{norm}.weight"]
        for norm in ("q_norm", "k_norm"):
            weights[f"{layer}.self_attn.{norm}.weight"] = found[f"{layer}.attn.{norm}.layernorm.weight"]
        packed = found[f"{layer}.attn.qkv_proj.MatMul.weight"].T.split(widths)
        for name, matrix in zip(("q_proj", "k_proj", "v_proj"), packed):
            weights[f"{layer}.self_attn.{name}.weight"] = matrix
        weights[f"{layer}.self_attn.o_proj.weight"] = found[f"{layer}.attn.o_proj.MatMul.weight"].T
        for name in ("gate_proj", "up_proj", "down_proj"):
            weights[f"{layer}.mlp.{name}.weight"] = found[f"{layer}.mlp.{name}.MatMul.weight"].T
    return weights


class Session:
    """Greedy decoding of the exported graph with ONNX Runtime and its KV cache."""

    def __init__(self, file: Path, heads: int, width: int):
        self.heads, self.width = heads, width
        self.session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def generate(self, prompt: list[int], stop: set[int], limit: int) -> list[int]:
        empty = {n: np.zeros((1, self.heads, 0, self.width), np.float32) for n in self.inputs if n.startswith("past")}
        cache, ids, out = empty, prompt, []
        while len(out) < limit:
            total = len(prompt) + len(out)
            feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, total), np.int64), **cache}
            if "position_ids" in self.inputs:
                feeds["position_ids"] = np.arange(total - len(ids), total, dtype=np.int64)[None]
            result = dict(zip(self.outputs, self.session.run(None, feeds)))
            token = int(result["logits"][0, -1].argmax())
            out.append(token)
            if token in stop:
                break
            cache = {n: result[n.replace("past_key_values", "present")] for n in cache}
            ids = [token]
        return out


@torch.inference_mode()
def compare(reference: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path, prompts: int = 20) -> None:
    """Greedy tokens of the graph against those of transformers on `prompts` evaluation questions."""
    encoder = Encoder(tokenizer)
    session = Session(out / "onnx/model.onnx", reference.config.num_key_value_heads, reference.config.head_dim)
    stop = {tokenizer.token_to_id(t) for t in (IM_END, END_OF_TEXT)}
    samples = evaluation_samples(prompts // 5, seed=3)[:prompts]
    same = 0
    for sample in samples:
        prompt = encoder.prompt(sample.messages, sample.tools, sample.thinking)
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        same += session.generate(prompt, stop, 64) == expected
    print(f"greedy tokens equal to transformers' on {same} of {len(samples)} prompts")
    if same < len(samples):
        raise SystemExit("the exported graph answers differently")
