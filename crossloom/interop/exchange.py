"""Published checkpoints as run directories, and run directories as what other libraries load."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

import crossloom.interop
from crossloom.interop.rules import Noted
from crossloom.modalities.word_pairs import parted
from crossloom.training.checkpoint import write_atomically
from crossloom.training.recipe import Recipe, RecipeError, override
from crossloom.training.run import (
    RECIPE,
    WEIGHTS,
    load_weights,
    make_model,
    open_run,
    prepare_folder,
)

#: Files of the Hub that are fetched; never code, never pickles.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")
#: Who reads what is exported.
TARGETS = ("transformers", "open_clip", "safetensors")


class Family(Protocol):
    """What a module of this room offers."""

    MODEL_TYPES: tuple[str, ...]

    def read(
        self, config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
    ) -> tuple[Recipe, dict[str, Tensor]]:
        """A recipe and our weights; what of ``weights`` is not looked at is left out."""

    def write(
        self, recipe: Recipe, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Their configuration and weights; ValueError when the recipe is not of the family."""


@dataclass(frozen=True)
class Report:
    """What was exchanged."""

    folder: Path
    family: str
    fresh: tuple[str, ...] = ()  #: our weights that the checkpoint has not; they start afresh
    left_out: tuple[str, ...] = ()  #: weights that have no counterpart on the other side
    wordless: tuple[str, ...] = ()  #: streams whose vocabulary the checkpoint does not bring along


def families() -> dict[str, Family]:
    """The modules of this room that read and write a family, by name."""
    found = {}
    for entry in pkgutil.iter_modules(crossloom.interop.__path__):
        module = importlib.import_module(f"crossloom.interop.{entry.name}")
        if hasattr(module, "MODEL_TYPES"):
            found[entry.name] = cast(Family, module)
    return found


# --- in -----------------------------------------------------------------------------------------


def import_checkpoint(source: str, out: Path, assignments: Sequence[str] = ()) -> Report:
    """Read a published checkpoint and leave a run directory.

    The recipe goes on with the family's objectives, as far as the checkpoint has their heads; where
    its shards are is for the user to say (``data``, ``mixture``). The vocabulary is copied.

    Args:
        source: a folder with ``config.json`` and safetensors, or the id of a model of the Hub.
        out: the run directory, which must not hold a run.
        assignments: dotted overrides of the recipe.

    Raises:
        RecipeError: ``out`` holds a run, or an override does not fit.
        ValueError: the checkpoint cannot be read; says what to do.
    """
    if (out / RECIPE).exists():
        raise RecipeError(f"{out}: holds a run already; choose another --out")
    folder = locate(source)
    config = read_config(folder)
    name, family = _family_of(config, folder)
    weights = Noted(read_weights(folder))
    try:
        recipe, ours = family.read(config, weights, folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    recipe = override(recipe, assignments)
    model = make_model(recipe)
    own = model.state_dict()
    for key, value in ours.items():
        if key not in own or own[key].shape != value.shape:
            wanted = list(own[key].shape) if key in own else "nothing"
            raise ValueError(
                f"{folder}: {key} is {list(value.shape)}, the configuration makes it {wanted}"
            )
    model.load_state_dict(ours, strict=False)
    prepare_folder(out, recipe)
    _save(model.state_dict(), out / WEIGHTS)
    return Report(
        out,
        name,
        fresh=tuple(sorted(set(own) - set(ours))),
        left_out=tuple(n for n in weights.unused() if not n.endswith("position_ids")),
        wordless=tuple(
            stream
            for stream, modality in recipe.modalities.items()
            if getattr(modality, "vocabulary", "") and not (out / f"{stream}.model").is_file()
        ),
    )


def locate(source: str) -> Path:
    """The folder of a checkpoint; one of the Hub is fetched into the Hub's own cache.

    Raises:
        ValueError: there is no such folder and it cannot be fetched.
    """
    if (folder := Path(source)).is_dir():
        return folder
    if folder.exists() or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"{source}: no such folder; give one with config.json and safetensors")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"{source}: no such folder; to fetch it from the Hub, pip install 'crossloom[hf]'"
        ) from None
    try:
        return Path(snapshot_download(source, allow_patterns=list(WANTED)))
    except Exception as error:  # the library raises its own, httpx's and OS errors alike
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source}: neither a folder here nor to be had from the Hub "
            f"({type(error).__name__}: {said})"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint, or ``open_clip_config.json`` where that is what there is.

    Raises:
        ValueError: there is neither, or it is no JSON object.
    """
    from crossloom.interop import open_clip

    for name in ("config.json", open_clip.CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        if name == open_clip.CONFIG and isinstance(content, dict):
            return {**content, "model_type": open_clip.MODEL_TYPES[0]}
        if isinstance(content, dict) and "model_type" in content:
            return content
    if (folder / RECIPE).is_file():
        raise ValueError(f"{folder}: is a run already; name it as --from, or as start=")
    raise ValueError(
        f"{folder}: no config.json with a model_type; give a folder as save_pretrained writes it"
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, from one safetensors file or several with their index.

    Raises:
        ValueError: there are none, pickled ones only, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = [folder / Path(n).name for n in names]
    else:
        known = ("model", "open_clip_model", "open_clip_pytorch_model")
        files = [f for n in known if (f := folder / f"{n}.safetensors").is_file()][:1]
    if not files:
        raise ValueError(f"{folder}: {_without(folder)}")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
    return weights


def _without(folder: Path) -> str:
    """What is wrong with a checkpoint that has no safetensors, and how to come by them.

    The class that converts is the checkpoint's own: any other would lose its heads.
    """
    from crossloom.interop import open_clip

    pickled = next((p.name for e in ("bin", "pt", "pth") for p in folder.glob(f"*.{e}")), "")
    # of the Hub pickles are not even fetched
    said = (
        f"only pickled weights ({pickled}), which may run code; convert them where you trust them: "
        if pickled
        else "no model.safetensors; if there are pickled weights (they are never fetched), convert "
        "them where you trust them: "
    )
    try:
        config = read_config(folder)
    except ValueError:
        config = {}
    if config.get("model_type") in open_clip.MODEL_TYPES:
        return said + (
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            f"DIR + '/{open_clip.WEIGHTS}')"
        )
    model = next(iter(config.get("architectures") or ()), "AutoModelForPreTraining")
    if pickled:
        return f"{said}transformers.{model}.from_pretrained(DIR).save_pretrained(DIR)"
    return (
        f"{said}transformers.{model}.from_pretrained(ID).save_pretrained(DIR), and AutoTokenizer "
        "likewise for the vocabulary"
    )


def _family_of(config: Mapping[str, Any], folder: Path) -> tuple[str, Family]:
    kind = config["model_type"]
    known = families()
    for name, family in known.items():
        if kind in family.MODEL_TYPES:
            return name, family
    types = ", ".join(sorted(t for f in known.values() for t in f.MODEL_TYPES))
    raise ValueError(f"{folder}: model_type {kind!r} is not known; there are {types}")


# --- out ----------------------------------------------------------------------------------------


def export_run(run: Path, to: str, out: Path, family: str = "") -> Report:
    """Write a run's model for another library.

    Args:
        run: a run directory.
        to: one of :data:`TARGETS`; ``safetensors`` is the recipe and our own weights.
        out: a folder, which must not hold a model.
        family: of ``transformers``, by the name of its module; found by trying when empty.

    Raises:
        ValueError: the model is of no family that the library has, or of several; ``out`` is full.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: there are {', '.join(TARGETS)}")
    recipe, (weights, _) = open_run(run), load_weights(run)
    if to == "safetensors":
        _check_empty(out, RECIPE, WEIGHTS)
        prepare_folder(out, recipe)
        _save(weights, out / WEIGHTS)
        return Report(out, to)
    name, config, theirs, left_out = _written(recipe, weights, to, family)
    module = families()[name]
    config_file = getattr(module, "CONFIG", "config.json")
    weights_file = getattr(module, "WEIGHTS", "model.safetensors")
    beside = getattr(module, "files", None)
    files: dict[str, bytes | str] = dict(beside(recipe)) if beside else {}
    for stream, modality in recipe.modalities.items():
        path = getattr(modality, "vocabulary", "")
        if path and Path(path).is_file() and stream not in recipe.tied:
            files |= _vocabulary(Path(path), modality)
    _check_empty(out, config_file, weights_file, *files)
    out.mkdir(parents=True, exist_ok=True)
    _save(theirs, out / weights_file)
    write_atomically(out / config_file, json.dumps(config, indent=2) + "\n")
    for file, content in files.items():
        write_atomically(out / file, content)
    return Report(out, name, left_out=left_out)


def _vocabulary(path: Path, modality: Any) -> dict[str, bytes | str]:
    """A vocabulary as the files of the other library, by the names that it gives them."""
    pieces = "sentencepiece.bpe.model"
    known = {"xlm-r": pieces, "mbart": pieces, "siglip": "spiece.model"}
    layout = str(getattr(modality, "layout", ""))
    if layout in ("xlm", "xlm-cased"):
        lower = {"do_lowercase_and_remove_accent": layout == "xlm"}
        return {**parted(path), "tokenizer_config.json": json.dumps(lower)}
    data = path.read_bytes()
    if layout.startswith("wordpiece"):
        # a folder that does not say so is taken for one of small letters
        how = {"do_lower_case": layout == "wordpiece", "tokenizer_class": "BertTokenizer"}
        name = "tokenizer.json" if data[:1] == b"{" else "vocab.txt"
        return {name: data, "tokenizer_config.json": json.dumps(how)}
    return {known.get(layout, path.name): data}


def _written(
    recipe: Recipe, weights: Mapping[str, Tensor], to: str, wanted: str
) -> tuple[str, dict[str, Any], dict[str, Tensor], tuple[str, ...]]:
    """The one family of a library that can write a recipe, and what it writes."""
    known = {n: f for n, f in families().items() if (n == "open_clip") == (to == "open_clip")}
    if wanted and wanted not in known:
        raise ValueError(f"--family {wanted}: there are {', '.join(known)}")
    for stream, modality in recipe.modalities.items():
        if getattr(modality, "inner", 0):
            raise ValueError(
                f"{recipe.name}: modalities.{stream}.inner: no family known here has words of "
                "another width than its layers; --to safetensors writes any run"
            )
    results, reasons = [], []
    for name, module in known.items():
        if wanted and name != wanted:
            continue
        noted = Noted(weights)
        try:
            config, theirs = module.write(recipe, noted)
        except ValueError as error:
            reasons.append(f"{name}: {error}")
        else:
            results.append((name, config, theirs, tuple(noted.unused())))
    if not results:
        raise ValueError(
            f"{recipe.name}: {to} has no such model ({'; '.join(reasons)}); "
            "--to safetensors writes any run"
        )
    if len(results) > 1:
        names = ", ".join(r[0] for r in results)
        raise ValueError(f"{recipe.name}: may be written as {names}; choose one with --family")
    return results[0]


def _check_empty(out: Path, *names: str) -> None:
    for name in names:
        if (out / name).exists():
            raise ValueError(f"{out}: holds {name} already; choose another --out")


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # each tensor in memory of its own: the format stores no tensor twice under two names
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    save_file(plain, path, metadata={"format": "pt"})
