"""Embeddings of regions as published, each against its formula written out here."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.boxes import waves
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.model import CrossloomModel
from crossloom.models.presets import single_stream
from crossloom.testing import check_modality
from crossloom.training.recipe import load_recipe
from crossloom.units import BadSample, Passage, keyed_rng

RNG = keyed_rng("test")
W = 8
TEXT = Text(vocabulary="none", size=30, limit=6, positions=10, segments=3, dropout=0.0)
SPEC = Regions(features=5, classes=4, dropout=0.0, norm="norm_of_sum", box=5)


def member(count=3, **changed):
    rng = np.random.default_rng(count)
    chance = rng.random((count, 4))
    low = rng.uniform(0, 40, (count, 2))
    arrays = {
        "features": rng.normal(size=(count, 5)).astype(np.float32),
        "boxes": np.concatenate([low, low + rng.uniform(1, 10, (count, 2))], 1),
        "probabilities": chance / chance.sum(1, keepdims=True),
        "size": np.array([100, 50]),
    } | changed
    out = io.BytesIO()
    np.savez(out, **{k: v for k, v in arrays.items() if v is not None})
    return {"regions.npz": out.getvalue()}


def flat(parts, hidden=()):
    """Units of several examples as a stream of tensors, the units numbered so hidden."""
    position = np.concatenate([p.position for p in parts])
    mask = np.isin(np.arange(len(position)), hidden)
    content = {k: np.concatenate([p.content[k] for p in parts]) for k in parts[0].content}
    return Stream.build(content, {}, position, mask, np.array([len(p) for p in parts]))


def written(lengths, **content):
    """Text units of so many pieces."""
    token = np.arange(sum(lengths)) % 20 + 5
    position = np.concatenate([np.arange(n) for n in lengths])
    content = {"token": token, "segment": np.zeros_like(token), **content}
    return Stream.build(content, {}, position, np.zeros(len(token), bool), np.array(lengths))


def view(**streams):
    return ViewBatch(streams=streams).to("cpu")


def model(image, text=TEXT):
    """Embedders alone, their weights random."""
    torch.manual_seed(1)
    modalities = {"text": text, "image": image}
    plan = single_stream(("text", "image"), layers=0, width=W, heads=2)
    whole = CrossloomModel(modalities, replace(plan, epsilon=1e-12), {})
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(0, 0.5)
    return whole.eval()


def embedded(image, hidden=(), text=TEXT, lengths=(4, 2)):
    """Model, view and states of two examples of three and two regions."""
    parts = [image.decode(member(n), RNG) for n in (3, 2)]
    whole = model(image, text)
    shown = view(text=written(lengths), image=flat(parts, hidden))
    return whole, shown, whole.encode(shown).states


def norm(x, like):
    x = x - x.mean(1, keepdim=True)
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-12).sqrt() * like.weight + like.bias


def linear(x, like):
    return x @ like.weight.T + like.bias


def test_uniter_takes_a_row_of_the_texts_segments():
    spec = replace(SPEC, box=7, norm="norm_of_norms", segment=1, lent={"segment": "text"})
    whole, shown, states = embedded(spec, hidden=[1])
    one, content = whole.embed["image"], shown.streams["image"].content
    feature = content["feature"].clone()
    feature[1] = one.mask
    total = norm(linear(feature, one.feature), one.feature_norm)
    total = total + norm(linear(content["box"], one.box), one.box_norm)
    expected = norm(total + whole.embed["text"].segment.weight[1], one.norm)
    assert torch.allclose(states["image"], expected, atol=1e-5)


def test_lxmert_shows_zeros_for_what_is_hidden():
    spec = replace(SPEC, box=4, norm="mean_of_norms", mask="zero")
    whole, shown, states = embedded(spec, hidden=[0, 4])
    one, content = whole.embed["image"], shown.streams["image"].content
    feature = content["feature"].clone()
    feature[[0, 4]] = 0
    total = norm(linear(feature, one.feature), one.feature_norm)
    expected = (total + norm(linear(content["box"], one.box), one.box_norm)) / 2
    assert torch.allclose(states["image"], expected, atol=1e-5)
    assert "mask" not in dict(one.named_parameters())


def test_visualbert_has_tables_of_its_own_under_the_texts_norm():
    spec = replace(
        SPEC, box=0, mask="zero", segments=2, segment=1, positions=7, lent={"norm": "text"}
    )
    whole, shown, states = embedded(spec)
    one, content = whole.embed["image"], shown.streams["image"].content
    total = linear(content["feature"], one.feature)
    total = total + one.segment.weight[1] + one.position.weight[0]
    expected = norm(total, whole.embed["text"].norm)
    assert torch.allclose(states["image"], expected, atol=1e-5)
    names = dict(one.named_parameters())
    assert set(names) == {"feature.weight", "feature.bias", "segment.weight", "position.weight"}


def test_oscar_has_one_layer_for_feature_and_box():
    spec = replace(SPEC, box=6, join="concat", norm="none")
    whole, shown, states = embedded(spec)
    one, content = whole.embed["image"], shown.streams["image"].content
    x1, y1, x2, y2, w, h = content["box"].T
    assert torch.allclose(x2 - x1, w, atol=1e-6)
    assert torch.allclose(y2 - y1, h, atol=1e-6)
    both = torch.cat([content["box"], content["feature"]], 1)
    assert torch.allclose(states["image"], linear(both, one.feature), atol=1e-5)
    assert one.feature.weight.shape == (W, 5 + 6)


def test_vlp_shows_the_detectors_classes():
    spec = replace(
        SPEC, box=5, hidden=7, activation="relu", chances=True, segment=1,
        lent={"norm": "text", "segment": "text"},
    )  # fmt: skip
    whole, shown, states = embedded(spec, hidden=[2])
    one, content = whole.embed["image"], shown.streams["image"].content
    feature, chance = content["feature"].clone(), content["classes"].clone()
    feature[2], chance[2] = one.mask, 0
    box = torch.cat([content["box"], chance.max(1, keepdim=True).values], 1)
    box = torch.cat([F.layer_norm(box, (6,)), F.layer_norm(chance, (4,))], 1)
    total = F.relu(linear(F.relu(linear(feature, one.first[0])), one.feature))
    total = total + F.relu(linear(box, one.box))
    expected = norm(total + whole.embed["text"].segment.weight[1], whole.embed["text"].norm)
    assert torch.allclose(states["image"], expected, atol=1e-5)


VLBERT = replace(
    SPEC, box="waves", join="concat", activation="relu", norm="norm_of_norms", gain=0.0,
    word=True, overall=True, segment=2,
    lent={"norm": "text", "segment": "text", "position": "text"},
)  # fmt: skip


def sines(box):
    """VL-BERT's encoding of corners in pixels of an image of 100 by 50, number by number."""
    x1, y1, x2, y2 = box
    four = ((x1 + x2) / 2 / 100, (y1 + y2) / 2 / 50, (x2 - x1) / 100, (y2 - y1) / 50)
    out = []
    for number in four:
        phases = [100 * number / 1000 ** (i / 256) for i in range(256)]
        out += [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
    return torch.tensor(out, dtype=torch.float32)


def test_vlbert_region_by_region_and_word_by_word():
    """Section 3.2 and common/visual_linguistic_bert.py; the image is its visible regions' mean."""
    text = replace(TEXT, looks_at="image")
    whole, shown, states = embedded(VLBERT, hidden=[2], text=text)
    one, other = whole.embed["image"], whole.embed["text"]
    words, image = shown.streams["text"], shown.streams["image"]
    flat_boxes = [torch.tensor([0, 0, 100, 50])]
    boxes = []
    for count in (3, 2):
        with np.load(io.BytesIO(member(count)["regions.npz"])) as arrays:
            boxes += flat_boxes + [torch.from_numpy(b) for b in arrays["boxes"]]
    feature = image.content["feature"].clone()
    feature[0] = feature[[1, 3]].mean(0)  # unit 2 is hidden
    feature[4] = feature[[5, 6]].mean(0)
    feature[2] = one.mask
    joined = torch.cat([torch.stack([sines(b.tolist()) for b in boxes]), feature], 1)
    assert joined.shape == (7, 2048 + 5)
    visual = F.relu(linear(joined, one.feature))
    hidden = torch.arange(7) == 2
    total = norm(visual, one.feature_norm) + one.word.weight[hidden.long()]
    total = total + other.segment.weight[2]
    total = total + other.position.weight[torch.tensor([4] * 4 + [2] * 3)]
    assert torch.allclose(states["image"], norm(total, other.norm), atol=1e-4)
    seen = norm(visual, other.sight_norm)[torch.tensor([0] * 4 + [4] * 2)]
    total = other.token(words.content["token"]) + other.position(words.position)
    total = total + other.segment.weight[0] + seen
    assert torch.allclose(states["text"], norm(total, other.norm), atol=1e-4)


def test_regions_end_with_a_vector_in_the_row_after_theirs():
    """VL-BERT's ``[END]``: common/visual_linguistic_bert.py, ``obj_pos_id_relative``."""
    spec = replace(VLBERT, end=True)
    units = spec.decode(member(3), RNG)
    assert len(units) == spec.longest() - spec.limit + 3 == 5  # the whole image, three, the end
    assert units.maskable.tolist() == [False, True, True, True, False]
    assert units.group[-1] not in units.group[:-1]
    whole, shown, states = embedded(spec)
    plain = embedded(VLBERT)
    one, other = whole.embed["image"], whole.embed["text"]
    image = shown.streams["image"]
    last = (image.start + image.length - 1).tolist()
    rows = other.position.weight[shown.streams["text"].length + 1]
    expected = norm(one.end.weight + other.segment.weight[2] + rows, other.norm)
    assert torch.allclose(states["image"][last], expected, atol=1e-5)
    # the image's mean is that of its regions alone
    means = one.mean(image), plain[0].embed["image"].mean(plain[1].streams["image"])
    assert torch.allclose(*means)


def test_the_end_needs_a_row_of_positions():
    with pytest.raises(ValueError, match=r"no row after its longest text .* by 2"):
        embedded(replace(VLBERT, end=True), text=replace(TEXT, positions=TEXT.limit + 1))
    with pytest.raises(ValueError, match="set positions to 2"):
        replace(SPEC, end=True, positions=1)


def test_vlbert_starts_from_bert_alone():
    text = replace(TEXT, looks_at="image")
    torch.manual_seed(0)
    modalities = {"text": text, "image": VLBERT}
    fresh = CrossloomModel(modalities, single_stream(("text", "image"), layers=0, width=W), {})
    shown = view(text=written((4,)), image=flat([VLBERT.decode(member(3), RNG)]))
    alone = replace(shown, streams={"text": shown.streams["text"]})
    assert torch.equal(fresh.encode(shown).states["text"], fresh.encode(alone).states["text"])


def test_without_an_image_words_see_a_learned_vector():
    text = replace(TEXT, looks_at="image")
    whole, shown, _ = embedded(VLBERT, text=text)
    other, words = whole.embed["text"], shown.streams["text"]
    total = other.token(words.content["token"]) + other.position(words.position)
    total = total + other.segment.weight[0] + norm(other.absent[None], other.sight_norm)
    expected = norm(total, other.norm)
    alone = whole.encode(ViewBatch(streams={"text": words})).states["text"]
    assert torch.allclose(alone, expected, atol=1e-5)
    # an example without regions beside one with some
    some = VLBERT.decode(member(3), RNG)
    none = type(some)(
        content={k: v[:0] for k, v in some.content.items()}, position=some.position[:0],
        maskable=some.maskable[:0], group=some.group[:0],
    )  # fmt: skip
    mixed = view(text=written((4, 2)), image=flat([some, none]))
    assert torch.allclose(whole.encode(mixed).states["text"][4:], expected[4:], atol=1e-5)


def test_words_do_not_see_what_is_hidden_or_not_to_be_read():
    text = replace(TEXT, looks_at="image")
    whole, shown, states = embedded(VLBERT, hidden=[1, 2, 3, 6], text=text)
    image = shown.streams["image"]
    feature = image.content["feature"].clone()
    feature[[0, 1, 2, 3, 4, 6]] = float("nan")  # hidden, and the whole image's own
    noisy = replace(image, content={**image.content, "feature": feature})
    other = replace(shown, streams={**shown.streams, "image": noisy})
    assert torch.equal(whole.encode(other).states["text"], states["text"])
    # two towers: the words of one must not carry the image of the other
    alone = whole.encode(ViewBatch(streams={"text": shown.streams["text"]})).states["text"]
    apart = whole.encode(replace(shown, apart=True)).states["text"]
    assert not torch.allclose(alone, states["text"], atol=1e-3)
    assert torch.equal(apart, alone)


def test_vlbert_trains_every_parameter_with_and_without_an_image():
    text = replace(TEXT, looks_at="image")
    for hidden in ([2], []):
        whole, shown, _ = embedded(VLBERT, hidden=hidden, text=text)
        for shows in (("text", "image"), ("text",)):
            whole.zero_grad()
            part = replace(shown, streams={s: shown.streams[s] for s in shows})
            sum(
                (x * torch.randn_like(x)).sum() for x in whole.encode(part).states.values()
            ).backward()
            named = (
                whole.named_parameters()
                if "image" in shows
                else whole.embed["text"].named_parameters()
            )
            assert not [n for n, p in named if p.grad is None]


def test_borrowed_parts_are_saved_and_counted_once():
    whole = model(VLBERT, replace(TEXT, looks_at="image"))
    names = [n for n, _ in whole.named_parameters()]
    assert names == list(whole.state_dict())
    assert "embed.text.norm.weight" in names
    assert not [n for n in names if n.startswith(("embed.image.norm", "embed.image.position"))]


B2T2 = replace(SPEC, norm="none", box=0, activation="tanh", overall=True)


def test_b2t2_shows_a_region_on_the_words_that_name_it():
    text = replace(TEXT, looks_at="image", sees="referred")
    parts = [B2T2.decode(member(n), RNG) for n in (3, 2)]
    whole = model(B2T2, text)
    refers = np.array([-1, 2, -1, 0, -1, 7])  # the last names a region that is not there
    shown = view(text=written((4, 2), refers=refers), image=flat(parts, hidden=[3]))
    one, other = whole.embed["image"], whole.embed["text"]
    words, feature = shown.streams["text"], shown.streams["image"].content["feature"].clone()
    feature[0] = feature[[1, 2]].mean(0)
    feature[3] = one.mask
    feature[4] = feature[[5, 6]].mean(0)
    visual = torch.tanh(linear(feature, one.feature))
    total = other.token(words.content["token"]) + other.position(words.position)
    expected = norm(total + other.segment.weight[0], other.norm)
    # first units see the whole images; region 2 is unit 3, region 0 unit 1
    expected = expected + torch.stack(
        [visual[0], visual[3], torch.zeros(W), visual[1], visual[4], torch.zeros(W)]
    )
    states = whole.encode(shown).states["text"]
    assert torch.allclose(states, expected, atol=1e-5)
    sum((x * torch.randn_like(x)).sum() for x in [states]).backward()
    assert not [n for n, p in whole.embed.named_parameters() if p.grad is None]


def test_waves_by_hand():
    out = waves(torch.tensor([[100.0, 50, 1, 0]]))
    assert out.shape == (1, 2048)
    assert out[0, 0] == pytest.approx(math.sin(100), abs=1e-6)
    assert out[0, 256] == pytest.approx(math.cos(100), abs=1e-6)
    assert out[0, 512 + 255] == pytest.approx(math.sin(50 / 1000 ** (255 / 256)), abs=1e-6)
    assert out[0, 1536:1792].abs().max() == 0
    assert out[0, 1792:].min() == 1
    few = waves(torch.tensor([[100.0, 50, 1, 0]]), 2)
    assert few.shape == (1, 16)
    assert few[0, 1] == pytest.approx(math.sin(100 / 1000**0.5), abs=1e-6)


def test_a_box_has_as_many_waves_as_the_recipe_says():
    recipe = load_recipe("vl-bert-tiny")
    assert recipe.modalities["image"].waves == 8
    layer = recipe.modalities["image"].embedder(16).feature
    assert layer.in_features == 64 + 8 * 8
    assert load_recipe("vl-bert").modalities["image"].embedder(16).feature.in_features == 4096


def test_attributes_and_confidences_are_beside_the_classes():
    spec = replace(SPEC, attributes=6, overall=True)
    arrays = {"attributes": np.array([5, -1, 0]), "labels": np.array([1, 3, 2])}
    units = spec.decode(member(3, **arrays), RNG)
    chance = units.targets["classes"]
    assert units.targets["attribute"].tolist() == [-1, 5, -1, 0]
    assert np.allclose(units.targets["class.trust"], [0, chance[1, 1], chance[2, 3], chance[3, 2]])
    assert units.targets["attribute.trust"].tolist() == [0, 1, 1, 1]
    arrays |= {
        "confidence": np.array([0.25, 0.5, 1]),
        "attribute_confidence": np.array([0, 0.5, 1]),
    }
    units = spec.decode(member(3, **arrays), RNG)
    assert units.targets["class.trust"].tolist() == [0, 0.25, 0.5, 1]
    assert units.targets["attribute.trust"].tolist() == [0, 0, 0.5, 1]
    assert spec.predictable()["attribute"].dim == 6
    check_modality(spec, member(3, **arrays))


def test_background_need_not_be_a_class():
    spec = replace(SPEC, classes=3, background=False)
    chance = np.array([[0.5, 0.25, 0.25, 0], [1, 0, 0, 0], [0, 0.2, 0.2, 0.6]], np.float32)
    units = spec.decode(member(3, probabilities=chance), RNG)
    assert units.targets["class"].tolist() == [0, 0, 2]
    third = [1 / 3] * 3
    assert np.allclose(units.targets["classes"], [[0.5, 0.5, 0], third, [0.2, 0.2, 0.6]])
    assert np.allclose(units.targets["class.trust"], [0.25, 0, 0.6])
    units = spec.decode(member(3, probabilities=None, labels=np.array([0, 3, 1])), RNG)
    assert units.targets["class"].tolist() == [-1, 2, 0]
    assert np.allclose(units.targets["classes"], [third, [0, 0, 1], [1, 0, 0]])
    assert units.targets["class.trust"].tolist() == [0, 1, 1]
    with pytest.raises(BadSample, match=r"labels are 0\.\.4; expected 0\.\.3"):
        spec.decode(member(3, labels=np.array([0, 4, 1])), RNG)
    check_modality(spec, member(3))


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({}, "missing member", "no 'attributes'"),
        ({"attributes": np.array([0, 6, 1])}, "wrong shape", r"0\.\.6; expected less than 6"),
        ({"attributes": np.zeros(3, int), "confidence": np.array([0, 2, 1])}, "NaN features",
         r"confidence is 0\.\.2; expected 0\.\.1"),
        ({"attributes": np.zeros(3, int), "confidence": np.array([0, np.nan, 1])}, "NaN features",
         "confidence is nan"),
    ],
)  # fmt: skip
def test_attributes_that_cannot_be_used(changed, kind, words):
    with pytest.raises(BadSample, match=words) as found:
        replace(SPEC, attributes=6).decode(member(3, **changed), RNG)
    assert found.value.kind == kind


@pytest.mark.parametrize(
    "changed",
    [
        {"box": 0},
        {"box": 6, "join": "concat", "norm": "none"},
        {"box": "waves", "join": "concat", "activation": "relu", "word": True, "gain": 0.5,
         "norm": "norm_of_norms"},
        {"mask": "zero", "segments": 2, "segment": 1, "positions": 1},
        {"chances": True, "hidden": 7, "activation": "relu"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("overall", [False, True])
def test_contract(changed, overall):
    check_modality(replace(SPEC, overall=overall, **changed), member(3))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"norm": "mean_of_norms", "box": 0}, "mean_of_norms needs a box"),
        ({"chances": True, "classes": 0}, "chances needs classes"),
        ({"chances": True, "join": "concat"}, "chances needs"),
        ({"lent": {"norm": "text"}, "norm": "none"}, "norm none has no last norm"),
        ({"lent": {"segment": "text"}, "segments": 2}, "segments is 2, but lent"),
        ({"segments": 2, "segment": 2}, "segment 2 is no row of a table of 2"),
    ],
)
def test_settings_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(SPEC, **changed)


@pytest.mark.parametrize(
    ("image", "text", "words"),
    [
        (replace(SPEC, lent={"norm": "words"}), TEXT, "image: lent.norm: stream 'words'"),
        (replace(SPEC, lent={"segment": "text"}), replace(TEXT, segments=1), "no segment to lend"),
        (replace(SPEC, lent={"segment": "text"}, segment=3), TEXT, "'text' has no such row"),
        (replace(SPEC, lent={"position": "text"}), replace(TEXT, positions=0), "no row after"),
        (SPEC, replace(TEXT, looks_at="text"), "text: looks_at: 'text' has no regions"),
    ],
)
def test_what_cannot_be_lent_is_said(image, text, words):
    with pytest.raises(ValueError, match=words):
        model(image, text)


def test_lent_parts_are_lent_in_a_model_only():
    stream = view(x=flat([VLBERT.decode(member(3), RNG)])).streams["x"]
    with pytest.raises(ValueError, match="segment: embedders lend in a model"):
        VLBERT.embedder(W)(stream)


@pytest.mark.parametrize("layout", ["own", "wordpiece"])
def test_words_that_name_a_region_are_found_by_their_characters(layout, world, tmp_path):
    vocabulary = world / "tokenizer.model"
    if layout == "wordpiece":
        pytest.importorskip("tokenizers")
        vocabulary = tmp_path / "vocab.txt"
        pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] a red circle is above blue sq ##ua ##re ."
        vocabulary.write_text("\n".join(pieces.split(" ")))
    text = Text(
        vocabulary=str(vocabulary), layout=layout, limit=30, looks_at="image", sees="referred",
        dropout=0.0,
    )  # fmt: skip
    line = "A red circle is above a blue square."
    passage = Passage("en", line, refers=((2, 12, 4), (line.index("blue"), len(line) - 1, 0)))
    units = text.decode({"text": (passage, Passage("en", "A red circle."))}, RNG)
    said = dict.fromkeys((-1, 0, 4), "")
    for number, token in zip(units.content["refers"], units.content["token"], strict=True):
        said[int(number)] += text.vocab.pieces[token].strip("▁#")
    assert said[4] == "redcircle"
    assert said[0] == "bluesquare"
    assert "above" in said[-1]
    check_modality(text, {"text": (passage,)})
