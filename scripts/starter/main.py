"""Trains, evaluates and exports the starter model. `scripts/train-starter --help` lists the options."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train-starter", description="Trains the starter model on generated chats and exports it to ONNX."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=REPOSITORY / "models/starter",
        help="folder for the exported model (default: models/starter)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=REPOSITORY / "target/starter",
        help="folder for checkpoints and the log (default: target/starter)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=97,
        help="training time in all, earlier runs of the same checkpoint included (default: 97)",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="begin with the weights and the tokenizer of an exported model instead of from nothing",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint in --work without training")
    parser.add_argument(
        "--score-only", action="store_true", help="score the checkpoint in --work without training or exporting"
    )
    parser.add_argument(
        "--failures", type=int, default=0, help="with --score-only: wrong answers to show per sub-skill"
    )
    parser.add_argument(
        "--questions", type=int, default=200, help="questions per skill in the final score (default: 200)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="train without torch.compile (which needs a C++ compiler)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    from train import Run

    only = args.export_only or args.score_only
    run = Run(args.work, resume=args.resume or only, compiled=not (args.no_compile or only), start=args.start)
    if not only:
        run.train(args.minutes)
    if not args.export_only:
        from evaluate import report, score
        from skills import evaluation_samples

        print(report(score(run.model, run.tokenizer, evaluation_samples(args.questions), args.failures)))
    if not args.score_only:
        from export import export

        export(run.model, args.work, args.out)


if __name__ == "__main__":
    main()
