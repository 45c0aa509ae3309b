"""Training: data from a worker process, Muon for the matrices, a schedule that follows the clock."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import tokenizer as tokenizers_
from evaluate import report, score
from export import TOKENIZER_FILES, exported_weights
from model import Geometry, StarterModel
from muon import Muon
from prompt import Encoder
from skills import FULL, START, evaluation_samples, training_chat

GEOMETRY = dict(
    hidden_size=192,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=tokenizers_.CONTEXT,
)
BATCH_TOKENS = 5120
POOL = 256  # chats sorted by length together, so that a batch needs little padding
MAX_LENGTH = 2048
MATRIX_RATE, OTHER_RATE = 0.02, 0.004
START_SHARE, DECAY_SHARE = 0.12, 0.35  # of the time: easy mixture at the start, falling rate at the end
AGAIN = 0.45  # of the rates, for a model that is trained already; they fall from early on
EVALUATE_EVERY, SAVE_EVERY = 600, 120  # seconds

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(encoder: Encoder, rng: random.Random, share: mp.Value, start_share: float) -> Iterator[Batch]:
    """Endless batches: ids padded on the right, flat positions to predict from, and the tokens to predict."""
    while True:
        mixture = START if share.value < start_share else FULL
        pool = [encoder.encode(training_chat(rng, mixture)) for _ in range(POOL)]
        pool = sorted((c for c in pool if len(c[0]) <= MAX_LENGTH), key=lambda c: len(c[0]))
        groups: list[list] = [[]]
        for chat in pool:
            if (len(groups[-1]) + 1) * len(chat[0]) > BATCH_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(chat)
        groups = [g for g in groups if sum(len(c[0]) for c in g) > BATCH_TOKENS // 4]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            keep, want = [], []
            for row, (chat, targets) in enumerate(group):
                ids[row, : len(chat)] = torch.tensor(chat)
                keep += [row * width + t - 1 for t in targets]
                want += [chat[t] for t in targets]
            yield ids, torch.tensor(keep), torch.tensor(want)


def feed(queue: mp.Queue, tokenizer: str, seed: int, share: mp.Value, start_share: float) -> None:
    """The worker process."""
    torch.set_num_threads(1)
    encoder = Encoder(Tokenizer.from_str(tokenizer))
    for ids, keep, want in batches(encoder, random.Random(seed), share, start_share):
        queue.put((ids.numpy(), keep.numpy(), want.numpy()))


def rate(share: float, step: int, peak: float) -> float:
    """Trapezoid over the share of the training time that is gone."""
    return peak * min(1.0, (step + 1) / 100, max(0.0, (1 - share) / (DECAY_SHARE / peak)))


class Run:
    """One training run and its checkpoint, from which it resumes; `start` is an exported folder to begin with."""

    def __init__(self, folder: Path, resume: bool, compiled: bool, start: Path | None = None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "last.pt"
        saved = torch.load(self.file, weights_only=False) if resume and self.file.exists() else None
        if saved is None and start is not None:
            for name in TOKENIZER_FILES:
                shutil.copy(start / name, folder / name)
        elif saved is None:
            tokenizers_.save(tokenizers_.build(), folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        torch.manual_seed(7)
        self.model = StarterModel(Geometry(vocab_size=self.tokenizer.get_vocab_size(), **GEOMETRY))
        if saved is None and start is not None:
            self.model.load_state_dict(exported_weights(start, self.model.geometry))
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
        self.optimizers = [
            (Muon(matrices, lr=MATRIX_RATE), MATRIX_RATE),
            (torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True), OTHER_RATE),
        ]
        self.half = torch.backends.cpu.get_cpu_capability() == "AVX512"  # without it, bfloat16 products are very slow
        self.step, self.tokens, self.seconds, self.resumed = 0, 0, 0.0, 0
        self.seed = 2000 if start else 1000  # of the data: a second training should see chats that the first did not
        self.peak = AGAIN if start else 1.0
        self.start_share = 0.0 if start else START_SHARE  # a model that knows its skills needs no easy mixture
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            for (optimizer, _), state in zip(self.optimizers, saved["optimizers"]):
                optimizer.load_state_dict(state)
            self.step, self.tokens, self.seconds, self.resumed = (
                saved["step"],
                saved["tokens"],
                saved["seconds"],
                saved["resumed"] + 1,
            )
        self.forward = torch.compile(self.model, dynamic=True) if compiled else self.model

    def save(self) -> None:
        state = dict(
            model=self.model.state_dict(),
            optimizers=[o.state_dict() for o, _ in self.optimizers],
            geometry=self.model.geometry.to_dict(),
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            resumed=self.resumed,
        )
        torch.save(state, self.file.with_suffix(".new"))
        os.replace(self.file.with_suffix(".new"), self.file)

    def train(self, minutes: float) -> None:
        """Trains until `minutes` of training time, earlier runs of this checkpoint included, are used."""
        total = minutes * 60
        context = mp.get_context("spawn")
        share, queue = context.Value("d", self.seconds / total), context.Queue(maxsize=24)
        worker = context.Process(
            target=feed,
            args=(queue, self.tokenizer.to_str(), self.seed + self.resumed, share, self.start_share),
            daemon=True,
        )
        worker.start()
        log = (self.folder / "train.log").open("a", buffering=1)
        saved = evaluated = self.seconds
        losses: list[float] = []
        clock = time.time()
        while self.seconds < total:
            ids, keep, want = (torch.from_numpy(a) for a in queue.get())
            lr = rate(self.seconds / total, self.step, self.peak)
            for optimizer, base in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = base * lr
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                logits = self.forward(ids, keep)
            loss = F.cross_entropy(logits.float(), want)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer, _ in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self.step += 1
            self.tokens += ids.numel()
            self.seconds += time.time() - clock
            clock = time.time()
            share.value = self.seconds / total
            if self.step % 50 == 0:
                print(
                    f"step {self.step}  {self.seconds / 60:.1f} min  {self.tokens / 1e6:.2f} M tokens  loss {sum(losses) / len(losses):.4f}  rate {lr:.2f}",
                    file=log,
                )
                losses.clear()
            if self.seconds - saved > SAVE_EVERY:
                saved = self.seconds
                self.save()
            if self.seconds - evaluated > EVALUATE_EVERY:
                evaluated = self.seconds
                print(report(score(self.model, self.tokenizer, evaluation_samples(48, seed=11))), file=log)
                clock = time.time()
        worker.terminate()
        self.save()
