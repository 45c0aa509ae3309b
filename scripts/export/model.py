"""Exports a checkpoint of transformers as a model folder that ortolan serves.

    scripts/export-model CHECKPOINT OUT --precision int4 --device cpu

CHECKPOINT is a folder with config.json, safetensors and a tokenizer; nothing is downloaded. The graph is made by the
model builder of ONNX Runtime GenAI, so onnxruntime-genai opens the folder too. OUT gets model.onnx with its weights in
model.onnx.data, genai_config.json, and what the builder leaves behind: config.json, generation_config.json, the
tokenizer's files and the chat template.

Which precision? Measured with Qwen3-0.6B's geometry on two cores with AVX-512 and VNNI:

  int4   CPU: the default. Fastest for a few requests at once (74 tokens/s for one, int8 has 51), a fifth of fp32's size.
         CUDA: smallest and fastest for one request; activations in fp16.
  int8   CPU: 1.3 times as fast as int4 where 16 requests run at once, and loses less accuracy. Weights are signed, with
         one scale per output channel, and activations are quantized as they come. CUDA: 8-bit weights in blocks.
  fp16   CUDA: the default; what most models were made for. Not for a CPU, which computes in fp32 anyway.
  bf16   CUDA: where fp16 overflows (Gemma).
  fp32   CPU: exact, slow and large; to compare others with.

Models with sliding windows (Gemma 3, gpt-oss) get full-length caches here, because those can be shared between requests
with the same beginning and cut back; `--option windowed_kv_cache=true` saves memory instead.

A gpt-oss checkpoint must keep its experts as published (MXFP4).
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

COMPANIONS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
]
PRECISIONS = {"cpu": ["int4", "int8", "fp32"], "cuda": ["fp16", "bf16", "int4", "int8", "fp32"]}
DEFAULT_OPTIONS = {"windowed_kv_cache": "false"}
INT4_OPTIONS = {"block_size": "32", "accuracy_level": "4"}
# A matrix that embedding and head share reaches the head through Transpose, which hides it from dynamic quantization.
INT8_OPTIONS = {"shared_embeddings": "false"}


def let_gemma3_build() -> None:
    """Gives the builder Gemma 3's rotary settings where it looks for them: since transformers 5 each kind of layer has
    its own in `rope_parameters`, and the builder knows the older, flat keys only."""
    from builders import gemma

    original = gemma.Gemma3Model.__init__

    def with_flat_keys(self, config, *arguments):
        by_layer = getattr(config, "rope_parameters", None) or {}
        if "full_attention" in by_layer:
            config.rope_parameters = by_layer["full_attention"]
            config.rope_theta = by_layer["full_attention"]["rope_theta"]
            config.rope_local_base_freq = by_layer["sliding_attention"]["rope_theta"]
        original(self, config, *arguments)

    gemma.Gemma3Model.__init__ = with_flat_keys


def build(checkpoint: Path, out: Path, precision: str, device: str, options: dict[str, str]) -> None:
    from onnxruntime_genai.models import builder  # puts the folder of the builder's parts on the path

    let_gemma3_build()
    # The second folder is for intermediate files. The builder writes it anew, and fails where a name in it is taken.
    with tempfile.TemporaryDirectory(prefix="export-model-") as cache:
        where = (None, str(checkpoint), str(out), precision, device, cache)
        prepared = builder.parse_extra_options(*where, [f"{key}={value}" for key, value in options.items()])
        builder.create_model(*where, **prepared)


def quantize_to_int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def export(checkpoint: Path, out: Path, precision: str, device: str, options: dict[str, str]) -> None:
    options = DEFAULT_OPTIONS | options
    if precision == "int4":
        options = INT4_OPTIONS | options
    out.mkdir(parents=True)
    if (precision, device) == ("int8", "cpu"):
        build(checkpoint, out, "fp32", device, INT8_OPTIONS | options)
        with tempfile.TemporaryDirectory(dir=out, prefix="int8-") as scratch:
            quantize_to_int8(out / "model.onnx", Path(scratch, "model.onnx"))
            for name in ("model.onnx", "model.onnx.data"):
                shutil.move(Path(scratch, name), out / name)
    else:
        build(checkpoint, out, precision, device, options)
    for name in COMPANIONS:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, out / name)
    for file in out.iterdir():
        file.chmod(0o644)  # external data is written for its owner only


def key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="export-model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist yet")
    parser.add_argument("--precision", choices=sorted({each for known in PRECISIONS.values() for each in known}))
    parser.add_argument("--device", choices=list(PRECISIONS), default="cpu", help="where it will run (default: cpu)")
    parser.add_argument(
        "--option",
        action="append",
        type=key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the model builder (its --extra_options); may be repeated",
    )
    arguments = parser.parse_args()
    known = PRECISIONS[arguments.device]
    precision = arguments.precision or known[0]
    if precision not in known:
        parser.error(f"--precision {precision} does not run well on {arguments.device}; take one of {', '.join(known)}")
    if not (arguments.checkpoint / "config.json").is_file():
        parser.error(f"{arguments.checkpoint} is not a checkpoint: it has no config.json")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already; name a new folder or remove it")
    try:
        export(arguments.checkpoint, arguments.out, precision, arguments.device, dict(arguments.option))
    except BaseException:
        shutil.rmtree(arguments.out, ignore_errors=True)
        raise
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {precision} for {arguments.device}, {size / 2**20:.1f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
