"""What the parity tests of BERT and its descendants have in common."""

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from crossloom.batch import AimBatch, Stream, ViewBatch
from crossloom.training.run import make_model

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
#: Units of each example; no two alike.
TEXTS, IMAGES = (5, 9, 3), (4, 2, 6)


def reference(cls, config):
    """A small model whose weights are all random: norms and biases too."""
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "orm.weight" in name else 0.0, 0.1)
    return model


def imported(module, model, folder):
    """The reference saved by its library, read by ours: config, weights, recipe, our model."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    recipe, ours = module.read(config, weights, folder)
    model = make_model(recipe)
    model.load_state_dict(ours, strict=True)
    return config, weights, recipe, model.eval()


def words(lengths, seed=0, segments=2):
    """Token ids without those of specials, segments in two runs, laid end to end."""
    rng = np.random.default_rng(seed)
    token = rng.integers(3, 60, sum(lengths))
    segment = np.concatenate([np.arange(n) * segments // n for n in lengths])
    return {"token": token, "segment": segment}


def flat(content, lengths):
    position = np.concatenate([np.arange(n) for n in lengths])
    hidden = np.zeros(len(position), bool)
    return Stream.build(content, {}, position, hidden, np.array(lengths))


def view(**streams):
    return ViewBatch(streams=streams).to("cpu")


def padded(values, lengths, fill=0):
    """``[N, …]`` as ``[E, L, …]``."""
    out = np.full((len(lengths), max(lengths), *values.shape[1:]), fill, values.dtype)
    for row, part in enumerate(np.split(values, np.cumsum(lengths)[:-1])):
        out[row, : len(part)] = part
    return torch.from_numpy(out)


def mask(lengths):
    return padded(np.ones(sum(lengths), np.int64), lengths)


def unpadded(x, lengths):
    return torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)])


def aim(index, value, weight=None):
    index = torch.as_tensor(index)
    weight = torch.ones(len(index)) if weight is None else torch.as_tensor(weight)
    return AimBatch(index=index, value=torch.as_tensor(value), weight=weight)


def check_close(ours, theirs, most):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= most


def check_gradients(module, recipe, model, reference, still=("none",)):
    """Every parameter of either has a gradient, and they agree, name by name of theirs.

    ``still``: tables whose row 0 the reference never trains (``padding_idx``), and we do.
    """
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert not [n for n, g in gradients.items() if g is None]
    # a tied parameter has several names there, and is written under one of them
    named = dict(reference.named_parameters(remove_duplicate=False))
    theirs = {n: p.grad for n, p in named.items()}
    ours = module.write(recipe, gradients)[1]
    written = [id(named[n]) for n in ours]
    assert len(written) == len(set(written))
    assert set(written) == {id(p) for p in named.values() if p.grad is not None}
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        if name.endswith(still):
            assert (theirs[name][0] == 0).all()
            assert gradient[0].abs().max() > 0
            gradient[0] = 0
        assert (gradient - theirs[name]).abs().max() <= 1e-4, name


def check_written(module, cls, config, weights, recipe, model, folder):
    """Written back: the same bits, the same settings, and the library reads them whole."""
    written, state = module.write(recipe, model.state_dict())
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[n], weights[n]) for n in weights)
    for key, value in written.items():
        if key != "pad_token_id":
            assert config[key] == value, key
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(written))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    again, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    saved = again.state_dict()
    assert all(torch.equal(saved[n], weights[n]) for n in weights)
