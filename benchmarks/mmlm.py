"""One step of MMLM over 250,002 words beside ``transformers``: ``python benchmarks/mmlm.py``.

Both sides train the same weights on the same sentences (as short as Tatoeba's) with the same units
hidden: XLMRobertaForMaskedLM on a padded batch, and a single stream of crossloom. Each runs in a
process of its own, forward and backward, in turn; memory is what a step adds at its peak to what
lay in memory before it. The optimiser's step is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import resident

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.interop import bert
from crossloom.modalities.modality import Target
from crossloom.models.fusion import Fusion
from crossloom.models.presets import single_stream
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.units import keyed_rng

SIZE, MASK, PAD = 250_002, 250_001, 1


def main() -> None:
    """Measure both sides, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    found: dict[str, Any] = {}
    for side in ("ours", "theirs"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--side", side],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found[side] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["ours"], found["theirs"]
    assert abs(ours["loss"] / theirs["loss"] - 1) <= 1e-4, found
    found["speed_ratio"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
    found["memory_ratio"] = ours["step_bytes"] / theirs["step_bytes"]
    found["process_memory_ratio"] = ours["process_bytes"] / theirs["process_bytes"]
    found["size"] = {k: getattr(options, k) for k in ("width", "layers", "sentences")}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One side: loss, tokens per second, and bytes at the peak of a step."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=SIZE, hidden_size=options.width, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32, intermediate_size=4 * options.width,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    reference = XLMRobertaForMaskedLM(config)
    rng = keyed_rng("mmlm")
    length = np.clip(rng.lognormal(2.2, 0.45, options.sentences).round(), 4, 60).astype(np.int64)
    clean = rng.integers(5, MASK, length.sum())
    hidden = rng.random(length.sum()) < 0.15
    shown = np.where(hidden, MASK, clean)
    step = (ours if options.side == "ours" else theirs)(reference, length, shown, clean, hidden)
    del reference
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    loss, times = 0.0, []
    for _ in range(options.repeats + 1):
        begin = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - begin)
    peak = resident("VmHWM")
    seconds = statistics.median(times[1:])
    return {
        "loss": loss, "seconds": seconds, "tokens_per_second": int(length.sum()) / seconds,
        "step_bytes": peak - before, "process_bytes": peak, "threads": torch.get_num_threads(),
        "units": int(length.sum()), "predicted": int(hidden.sum()), "longest": int(length.max()),
    }  # fmt: skip


def theirs(model: Any, length: Any, shown: Any, clean: Any, hidden: Any) -> Any:
    """A step of ``transformers`` on a padded batch; -100 where nothing is predicted."""
    real = np.arange(length.max()) < length[:, None]
    ids, labels = np.full(real.shape, PAD), np.full(real.shape, -100)
    ids[real], labels[real] = shown, np.where(hidden, clean, -100)
    given = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
    tensors = {k: torch.from_numpy(v) for k, v in given.items()}

    def step() -> float:
        model.zero_grad()
        loss = model(**tensors).loss
        loss.backward()
        return float(loss.detach())

    return step


def ours(reference: Any, length: Any, shown: Any, clean: Any, hidden: Any) -> Any:
    """A step of crossloom on flat units, with the reference's weights."""
    config = reference.config
    width, layers = config.hidden_size, config.num_hidden_layers
    plan = single_stream(
        ("text",), width=width, layers=layers, heads=config.num_attention_heads, dropout=0.0
    )
    plan = bert.shaped(plan, bert.plan_of(config.to_dict()))
    fusion, embed = Fusion(plan), reference.roberta.embeddings
    weights = reference.state_dict()
    state: dict[str, torch.Tensor] = {}
    for number in range(layers):
        for rule in bert.layer(number, "shared", f"roberta.encoder.layer.{number}"):
            made = rule.read([weights[n] for n in rule.theirs])
            state |= dict(zip(rule.ours, made, strict=True))
    fusion.load_state_dict({k.removeprefix("fusion."): v.clone() for k, v in state.items()})
    head = ReconstructHead(
        stream="text", name="token", target=Target(form="index", dim=SIZE), loss="auto",
        width=width, tied=False,
    )  # fmt: skip
    head.transform[0].load_state_dict(reference.lm_head.dense.state_dict())  # type: ignore[index]
    head.transform[2].load_state_dict(reference.lm_head.layer_norm.state_dict())  # type: ignore[index]
    head.transform[2].eps = config.layer_norm_eps  # type: ignore[index]
    head.decoder, head.bias = embed.word_embeddings.weight, reference.lm_head.bias
    stream = Stream.build({}, {}, np.concatenate([np.arange(n) for n in length]), hidden, length)
    view = ViewBatch(streams={"text": stream}).to("cpu")
    index = np.flatnonzero(hidden)
    aim = AimBatch(
        index=torch.from_numpy(index), value=torch.from_numpy(clean[index]),
        weight=torch.ones(len(index)),
    )  # fmt: skip
    ids, place = torch.from_numpy(shown), view.streams["text"].position + PAD + 1
    modules = (fusion, head, embed)

    def step() -> float:
        for module in modules:
            module.zero_grad()
        x = embed.word_embeddings(ids) + embed.position_embeddings(place)
        x = embed.LayerNorm(x + embed.token_type_embeddings.weight[0])
        encoded = Encoded(view, fusion({"text": x}, view), {})
        loss = head(encoded, aim)["loss"] / len(index)
        loss.backward()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
