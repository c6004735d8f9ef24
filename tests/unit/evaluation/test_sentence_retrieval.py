"""Sentences found by their translations: search by hand, layers, and real runs on the world."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation import nearest as search
from crossloom.evaluation.finetune import evaluate, finetune
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError
from crossloom.units import Passage, keyed_rng

TASK = "sentence-retrieval"


# --- search -------------------------------------------------------------------------------------


def test_a_hub_is_found_everywhere_by_cosine_and_not_by_margin():
    # the last candidate lies in the middle of all
    x = torch.eye(5)[:4] + 0.6
    y = torch.cat([0.55 * torch.eye(5)[:4] + 0.9 * x.mean(0), 4 * x.mean(0)[None]])
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    assert search.nearest(x, y)[0].tolist() == (x @ y.T).argmax(1).tolist()
    there, back = search.nearest(x, y, "margin")
    score = by_margin(x.double().numpy(), y.double().numpy())
    assert there.tolist() == score.argmax(1).tolist()
    # the hub itself is as near to one as to another
    assert back.tolist()[:4] == score.argmax(0).tolist()[:4]
    assert score[back[4], 4] == pytest.approx(score[:, 4].max())


def by_margin(x, y, k=4):
    """The ratio of Artetxe & Schwenk written out over the whole matrix; 0 for what is not near."""
    cosine = x @ y.T
    here = np.sort(cosine, 1)[:, -k:].mean(1)
    away = np.sort(cosine, 0)[-k:].mean(0)
    score = cosine / ((here[:, None] + away[None]) / 2)
    near = cosine >= np.sort(cosine, 1)[:, [-min(k, cosine.shape[1])]]
    near_back = cosine >= np.sort(cosine, 0)[[-min(k, len(cosine))]]
    return np.where(near | near_back, score, 0)


@pytest.mark.parametrize("scoring", ["cosine", "margin"])
def test_chunks_change_nothing(monkeypatch, scoring):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(37, 8, generator=draw), torch.randn(29, 8, generator=draw)
    whole = search.nearest(x, y, scoring)
    monkeypatch.setattr(search, "AT_ONCE", 64)
    for one, other in zip(whole, search.nearest(x, y, scoring), strict=True):
        assert torch.equal(one, other)
    a, b = (F.normalize(v, dim=1).double().numpy() for v in (x, y))
    if scoring == "cosine":
        assert whole[0].tolist() == (a @ b.T).argmax(1).tolist()
    else:
        cosine = a @ b.T
        here, away = np.sort(cosine, 1)[:, -4:].mean(1), np.sort(cosine, 0)[-4:].mean(0)
        for row, found in enumerate(whole[0].tolist()):
            near = np.argsort(-cosine[row])[:4]
            assert found == max(near, key=lambda n: cosine[row, n] / (here[row] + away[n]))


def test_ten_thousand_candidates_need_no_square_matrix(monkeypatch):
    seen = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: seen.append(len(a) * b.shape[1]) or real(a, b)
    )
    x = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    there, back = search.nearest(x, x + 1e-4)
    assert max(seen) <= search.AT_ONCE < 10_000**2
    assert (there == torch.arange(10_000)).float().mean() > 0.9
    assert len(back) == 10_000


# --- the task -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    train(replace(tiny_recipe(world), steps=1), out, start("cpu"))
    return out


@pytest.fixture(scope="module")
def parallel(world, tmp_path_factory):
    """Sentences in German, English and French; German says word for word what English does."""
    out = tmp_path_factory.mktemp("parallel")
    words = ["red", "green", "blue", "circle", "square", "star", "left", "right"]
    for split in ("dev", "test"):
        with ShardWriter(out, split) as writer:
            for n in range(12):
                rng = keyed_rng("sentences", split, n)
                said = " ".join(rng.permutation(words)[: 3 + n % 3])
                texts = {"en": [said, "further"], "de": [said]}
                texts |= {"fr": [f"{n} ronds"]} if n % 2 else {}
                writer.write(f"{n:03d}", {"json": {"id": str(n), "parallel": True, "texts": texts}})
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out


def test_every_direction_and_layer_by_hand(base, parallel):
    result = evaluate(TASK, base, start("cpu"), [f"data={parallel}", "layer=1"])
    metrics = result.metrics
    assert (metrics["pairs"], metrics["layer"]) == (3, 1)
    assert metrics["sentences"] == 12 + 12 + 6
    # the same words have the same states, whatever the language
    assert metrics["by_direction"]["de-en"] == metrics["by_direction"]["en-de"] == 1
    assert set(metrics["by_layer"]) == {"0", "1", "2"}
    # French again, written out: mean states of each sentence by itself
    from crossloom.data_pipelines.collate import Collator, Example
    from crossloom.objectives.view import View
    from crossloom.run import load

    loaded = load(base)
    text = loaded.recipe.modalities["text"]
    collate = Collator(loaded.recipe.modalities, loaded.recipe.objectives, 0)

    def state(language, said):
        units = {"text": text.decode({"text": (Passage(language, said),)}, keyed_rng(0))}
        example = Example(key="k", sample="k", epoch=0, units=units, labels={})
        view = collate.show(View(name="v", streams=("text",)), [example]).to("cpu")
        with torch.no_grad():
            found = loaded.model.encode(view, layers=(1,)).middle[1]["text"].mean(0)
        return F.normalize(found, dim=0).numpy()

    asked = [r for r in result.records if (r["language"], r["to"]) == ("fr", "en")]
    assert len(asked) == 6
    english = np.array([state("en", r["right"]) for r in asked])
    for record in asked:
        best = int((english @ state("fr", record["text"])).argmax())
        assert record["found"] == asked[best]["right"]
        assert record["score"] == float(record["found"] == record["right"])
    share = float(np.mean([r["score"] for r in asked]))
    assert metrics["by_direction"]["fr-en"] == pytest.approx(share)
    directions = metrics["by_direction"]
    assert metrics["accuracy"] == pytest.approx(np.mean(list(directions.values())))
    with_french = [v for k, v in directions.items() if "fr" in k]
    assert metrics["by_language"]["fr"] == pytest.approx(np.mean(with_french))


def test_the_layer_is_chosen_on_dev_and_never_on_test(base, parallel):
    data = f"data={parallel}"
    on_dev = evaluate(TASK, base, start("cpu"), [data, "test=dev-*.tar", "layer=0"]).metrics
    by_layer = on_dev["by_layer"]
    best = max(range(3), key=lambda n: by_layer[str(n)])
    result = evaluate(TASK, base, start("cpu"), [data])
    assert result.metrics["layer"] == best
    assert result.metrics["accuracy"] == result.metrics["by_layer"][str(best)]
    written = json.loads((base / "results" / f"{TASK}.json").read_text())
    assert written["metrics"]["layer"] == best


def test_languages_can_be_left_out(base, parallel):
    data = (f"data={parallel}", "layer=-1")
    assert evaluate(TASK, base, start("cpu"), [*data, "least=10"]).metrics["pairs"] == 1
    found = evaluate(TASK, base, start("cpu"), [*data, "pivot=fr"]).metrics
    assert set(found["by_direction"]) == {"de-fr", "fr-de", "en-fr", "fr-en"}
    chosen = evaluate(TASK, base, start("cpu"), [*data, "languages=[de, fr]"]).metrics
    assert set(chosen["by_language"]) == {"de", "fr"}
    assert chosen["layer"] == 2


def test_a_candidate_that_reads_the_same_is_right(base, parallel, tmp_path):
    with ShardWriter(tmp_path, "test") as writer:
        for n in range(4):
            texts = {"en": ["red star"], "de": ["roter Stern" if n % 2 else "Stern"]}
            writer.write(f"{n:03d}", {"json": {"id": str(n), "texts": texts}})
    result = evaluate(TASK, base, start("cpu"), [f"data={tmp_path}", "layer=0", "least=4"])
    assert result.metrics["by_direction"]["de-en"] == 1


def test_what_is_lacking_is_said(base, parallel, tmp_path):
    data = f"data={parallel}"
    for settings, message in [
        (["layer=3"], "0 to 2, or -1"),
        (["layer=1", "least=99"], "no two languages have 99 sentences"),
        (["dev=none-*.tar"], "set the layer: layer=-1"),
        (["test={dev,test}-*.tar"], "splits dev, test, which would be searched as one"),
    ]:
        with pytest.raises(RecipeError, match=message):
            evaluate(TASK, base, start("cpu"), [data, *settings])
    with pytest.raises(RecipeError, match="nothing is trained"):
        finetune(TASK, base, tmp_path / "x", start("cpu"))
