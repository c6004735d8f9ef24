import io
import json
from collections import Counter, defaultdict
from math import log

import numpy as np
import pytest
from PIL import Image

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.world import (
    ANSWERS,
    LANGUAGES,
    clip,
    describe,
    make_scene,
    write_world,
)
from crossloom.data_pipelines.world.language import Thing
from crossloom.data_pipelines.world.scene import (
    CLASSES,
    COLOURS,
    FEATURES,
    OUTLINES,
    SHAPES,
    SIDE,
    draw,
    regions,
    split_of,
)


@pytest.fixture(scope="module")
def scenes():
    return [(s := make_scene(0, "train", n), describe(s, 0)) for n in range(400)]


def say(code, pattern, *things):
    return LANGUAGES[code].say(pattern, *(Thing(*t) for t in things))


GOLDEN = [
    ("en", "relation.left", "A small red star is to the left of a blue square."),
    ("de", "relation.left", "Ein kleiner roter Stern ist links von einem blauen Quadrat."),
    ("fr", "relation.left", "Une petite étoile rouge est à gauche d'un carré bleu."),
    ("es", "relation.left", "Una estrella roja pequeña está a la izquierda de un cuadrado azul."),
    ("ru", "relation.left", "Маленькая красная звезда находится слева от синего квадрата."),
    ("ar", "relation.left", "توجد نجمة حمراء صغيرة على يسار مربع أزرق."),
    ("hi", "relation.left", "एक छोटा लाल तारा एक नीले वर्ग के बाईं ओर है।"),
    ("zh", "relation.left", "一个红色的小星形在一个蓝色的正方形的左边。"),
    ("sw", "relation.left", "Nyota ndogo nyekundu iko kushoto kwa mraba wa bluu."),
    ("tr", "relation.left", "Küçük kırmızı bir yıldız mavi bir karenin solunda."),
    ("de", "place.left", "Der Stern ist links vom Quadrat."),
    ("fr", "place.left", "L'étoile est à gauche du carré."),
    ("es", "place.left", "La estrella está a la izquierda del cuadrado."),
    ("ru", "place.above", "Звезда находится над квадратом."),
    ("tr", "q_side.above", "Yıldız karenin üstünde mi?"),
    ("de", "absent", "Es gibt keinen kleinen roten Stern."),
    ("fr", "absent", "Il n'y a pas de petite étoile rouge."),
    ("es", "absent", "No hay ninguna estrella roja pequeña."),
    ("ru", "absent", "Нет маленькой красной звезды."),
    ("ar", "absent", "لا توجد نجمة حمراء صغيرة."),
    ("hi", "absent", "कोई छोटा लाल तारा नहीं है।"),
    ("tr", "absent", "Küçük kırmızı yıldız yok."),
    ("hi", "q_larger", "क्या तारा वर्ग से बड़ा है?"),
    ("sw", "q_larger", "Je, nyota ni kubwa kuliko mraba?"),
    ("fr", "q_larger", "L'étoile est-elle plus grande que le carré ?"),
]


@pytest.mark.parametrize(("code", "pattern", "sentence"), GOLDEN)
def test_sentences_agree_as_a_speaker_would(code, pattern, sentence):
    assert say(code, pattern, ("star", "red", "small"), ("square", "blue")) == sentence


def test_elision_and_gender_of_colours():
    assert say("fr", "is", ("star",), ("star", "green")) == "L'étoile est verte."
    assert say("fr", "absent", ("star",)) == "Il n'y a pas d'étoile."
    assert say("ru", "is", ("heart",), ("heart", "blue")) == "Сердце синее."
    assert say("ar", "is", ("circle",), ("circle", "white")) == "الدائرة بيضاء."
    assert say("sw", "is", ("circle",), ("circle", "yellow")) == "Duara ni la njano."
    assert say("de", "exists", ("triangle", "white")) == "Es gibt ein weißes Dreieck."


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_says_everything_with_every_word(code):
    language = LANGUAGES[code]
    assert set(language.patterns) == set(LANGUAGES["en"].patterns)
    spoken = set()
    for shape in SHAPES:
        for colour in COLOURS:
            for size in ("", "small", "large"):
                spoken.add(language.say("exists", Thing(shape, colour, size)))
    assert len(spoken) == len(SHAPES) * len(COLOURS) * 3


def test_scenes_depend_on_their_number_alone_and_splits_share_none():
    signatures = {
        s: {make_scene(3, s, n).signature() for n in range(150)} for s in ("train", "dev", "test")
    }
    assert make_scene(3, "dev", 7) == make_scene(3, "dev", 7)
    assert make_scene(3, "dev", 7) != make_scene(4, "dev", 7)
    for split, some in signatures.items():
        assert {split_of(x) for x in some} == {split}


def test_boxes_enclose_what_is_drawn():
    for number in range(30):
        scene = make_scene(0, "train", number)
        image = np.asarray(Image.open(io.BytesIO(draw(scene, 0)))).astype(int)
        background = image[0, 0]
        inside = np.zeros((SIDE, SIDE), bool)
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= SIDE
            assert 0 <= y1 < y2 <= SIDE
            inside[y1 : y2 + 1, x1 : x2 + 1] = True
            assert np.abs(image[y1:y2, x1:x2] - background).max() > 25
        assert np.abs(image[~inside] - background).max() < 3


def test_outlines_stay_in_their_square():
    for name, outline in OUTLINES.items():
        assert all(-1.001 <= c <= 1.001 for point in outline() for c in point), name


def true_answer(kind, english, objects):
    """The answer again, from the English question and the scene, by another route."""
    words = english.rstrip("?").lower().split()
    by_shape = {o["shape"]: o for o in objects}
    shapes = [w for w in words if w in SHAPES]
    colours = [w for w in words if w in COLOURS]
    if kind == "count":
        return str(len(objects))
    if kind == "colour":
        return by_shape[shapes[0]]["colour"]
    if kind == "shape":
        (one,) = [o["shape"] for o in objects if o["colour"] == colours[0]]
        return one
    if kind == "existence":
        found = any(o["shape"] == shapes[0] and o["colour"] == colours[0] for o in objects)
    elif kind == "same colour":
        found = by_shape[shapes[0]]["colour"] == by_shape[shapes[1]]["colour"]
    elif kind == "size":
        widths = [by_shape[s]["box"][2] - by_shape[s]["box"][0] for s in shapes]
        found = widths[0] > widths[1]
    else:
        (ax, ay), (bx, by) = ((by_shape[s]["cell"] % 3, by_shape[s]["cell"] // 3) for s in shapes)
        found = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[
            next(w for w in words if w in ("left", "right", "above", "below"))
        ]
    return "yes" if found else "no"


def test_every_answer_is_right(scenes):
    seen = Counter()
    for _, said in scenes:
        for question in said["questions"]:
            (answer,) = question["answers"]
            assert answer == true_answer(question["kind"], question["text"]["en"], said["scene"])
            assert answer in ANSWERS
            assert set(question["text"]) == set(LANGUAGES)
            seen[question["kind"]] += 1
    assert len(seen) == 7


def test_no_answer_is_worth_guessing(scenes):
    answers = Counter(a for _, s in scenes for q in s["questions"] for a in q["answers"])
    assert answers.most_common(1)[0][1] / sum(answers.values()) <= 0.40
    for kind in ("existence", "place", "size"):
        some = Counter(
            a for _, s in scenes for q in s["questions"] if q["kind"] == kind for a in q["answers"]
        )
        assert 0.4 < some["yes"] / sum(some.values()) < 0.6, kind


def test_expressions_fit_one_object_only(scenes):
    kinds = Counter()
    for _, said in scenes:
        objects = said["scene"]
        by_shape = {o["shape"]: o for o in objects}
        for refer in said["refers"]:
            words = refer["text"]["en"].lower().split()
            there = [o for o in objects if o["box"] == refer["box"]]
            assert len(there) == 1
            (meant,) = there
            shapes = [w for w in words if w in SHAPES]
            colours = [w for w in words if w in COLOURS]
            if refer["kind"] == "place":
                place = {s: divmod(o["cell"], 3)[::-1] for s, o in by_shape.items()}
                mark = place[shapes[0]]
                side = next(w for w in words if w in ("left", "right", "above", "below"))
                axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[
                    side
                ]
                fits = [
                    s for s, at in place.items() if (at[axis] - mark[axis]) * sign > 0
                ]  # fmt: skip
                assert fits == [meant["shape"]]
            elif refer["kind"] == "colour":
                assert [o["shape"] for o in objects if o["colour"] == colours[0]] == [
                    meant["shape"]
                ]
            else:
                assert shapes == [meant["shape"]]
                assert colours in ([], [meant["colour"]])
            assert set(refer["text"]) == set(LANGUAGES)
            kinds[refer["kind"]] += 1
    assert set(kinds) == {"name", "colour", "place"}


def test_references_agree_as_a_speaker_would():
    colour = {x: say(x, "refer.colour", ("", "white")) for x in LANGUAGES}
    assert colour["de"] == "Die weiße Form"
    assert colour["fr"] == "La forme blanche"
    assert colour["ru"] == "Белая фигура"
    assert colour["ar"] == "الشكل الأبيض"
    assert colour["hi"] == "सफ़ेद आकृति"
    assert say("de", "refer.left", ("circle",)) == "Die Form links vom Kreis"
    assert say("fr", "refer.above", ("star",)) == "La forme au-dessus de l'étoile"
    assert say("es", "refer.left", ("circle",)) == "La forma a la izquierda del círculo"
    assert say("tr", "refer.above", ("square",)) == "Karenin üstündeki şekil"


def test_statements_are_true_of_their_scene(scenes):
    for _, said in scenes[:200]:
        there = {(o["colour"], o["shape"]) for o in said["scene"]}
        for text in said["statements"]["en"]:
            words = text.rstrip(".").lower().split()
            pair = (
                next((w for w in words if w in COLOURS), ""),
                next(w for w in words if w in SHAPES),
            )
            if text.startswith("There is no"):
                assert pair not in there
            elif text.startswith("There is") or pair[0]:
                assert pair in there


def test_labels_of_inference_are_balanced_and_follow_from_the_premise(scenes):
    labels = Counter()
    for _, said in scenes:
        for pair in said["pairs"]:
            labels[pair["label"]] += 1
            premise, hypothesis = (
                pair[s]["en"].lower().rstrip(".") for s in ("premise", "hypothesis")
            )
            shape = next(w for w in hypothesis.split() if w in SHAPES)
            if shape not in premise.replace(",", "").split():
                assert pair["label"] == "neutral", pair
            elif hypothesis.startswith("there is no"):
                assert pair["label"] == "contradiction"
            elif hypothesis.startswith("there is"):
                assert pair["label"] == "entailment"
    share = [n / sum(labels.values()) for n in labels.values()]
    assert len(share) == 3
    assert max(share) < 0.42
    assert min(share) > 0.27


def test_the_hypothesis_alone_does_not_tell_the_label(scenes):
    data = [
        (p["hypothesis"]["en"].lower().split(), p["label"]) for _, s in scenes for p in s["pairs"]
    ]
    train, test = data[: len(data) // 2], data[len(data) // 2 :]
    words, totals = defaultdict(Counter), Counter()
    for tokens, label in train:
        totals[label] += 1
        words[label].update(tokens)
    vocabulary = {w for c in words.values() for w in c}

    def guess(tokens):
        def score(label):
            size = sum(words[label].values()) + len(vocabulary)
            return log(totals[label]) + sum(log((words[label][t] + 1) / size) for t in tokens)

        return max(totals, key=score)

    assert np.mean([guess(t) == label for t, label in test]) <= 0.5


def test_features_tell_shape_and_colour_and_probabilities_sum_to_one():
    rows, labels = [], []
    for number in range(300):
        arrays = np.load(io.BytesIO(regions(make_scene(0, "train", number), 0)))
        assert np.allclose(arrays["probabilities"].astype(float).sum(1), 1, atol=5e-3)
        assert arrays["features"].shape[1] == FEATURES
        assert arrays["probabilities"].shape[1] == CLASSES
        rows.append(arrays["features"].astype(float))
        labels.append(arrays["probabilities"].argmax(1))
    rows, labels = np.concatenate(rows), np.concatenate(labels)
    half = len(rows) // 2
    known = sorted(set(labels[:half].tolist()))
    centres = np.stack([rows[:half][labels[:half] == c].mean(0) for c in known])
    nearest = ((rows[half:, None] - centres) ** 2).sum(2).argmin(1)
    seen = np.isin(labels[half:], known)
    assert np.mean(np.array(known)[nearest][seen] == labels[half:][seen]) >= 0.95


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(
            tmp_path / name,
            examples=12,
            dev=2,
            test=2,
            speech=5,
            clips=6,
            seed=seed,
            shard_size=5,
            processes=1,
        )
    tars = sorted(p.name for p in (tmp_path / "a").glob("*.tar"))
    assert len(tars) == 3 + 1 + 1 + 3 + 4
    same = [(tmp_path / "a" / t).read_bytes() == (tmp_path / "b" / t).read_bytes() for t in tars]
    other = [(tmp_path / "a" / t).read_bytes() == (tmp_path / "c" / t).read_bytes() for t in tars]
    assert all(same)
    assert not any(other)


def test_another_world_is_not_overwritten(tmp_path):
    settings = {"dev": 1, "test": 1, "speech": 0, "clips": 0, "processes": 1}
    write_world(tmp_path, examples=3, **settings)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.tar")}
    with pytest.raises(ValueError, match="another world is there"):
        write_world(tmp_path, examples=4, **settings)
    assert {p: p.read_bytes() for p in tmp_path.glob("*.tar")} == before
    write_world(tmp_path, examples=4, overwrite=True, **settings)
    assert sum(len(s.entries) for s in open_shards("train-*.tar", tmp_path)) == 4


def test_a_sample_holds_what_the_page_says(world):
    sample = open_shards("test-*.tar", world)[0].read(0)
    assert set(sample) == {"png", "regions.npz", "teacher.npy", "json"}
    taught = np.load(io.BytesIO(sample["teacher.npy"]))
    assert (taught.dtype, taught.shape) == (np.float16, (3, FEATURES))
    content = json.loads(sample["json"])
    lists = {"texts", "alignments", "statements", "questions", "pairs", "refers", "scene"}
    assert set(content) == {"id", *lists}
    assert list(content["texts"]) == list(LANGUAGES)


def test_a_clip_shows_the_objects_from_left_to_right(world):
    entries = clip.codebook()
    for shard in open_shards("clip-train-*.tar", world):
        for number in range(len(shard.entries)):
            sample = shard.read(number)
            features, codes = (np.load(io.BytesIO(sample[f"{n}.npy"])) for n in ("frames", "codes"))
            assert 7 <= len(features) == len(codes) <= 20
            seen = [int(c) for n, c in enumerate(codes) if c and (n == 0 or codes[n - 1] != c)]
            name = shard.entries[number].key.removeprefix("clip-train-")
            things = sorted(make_scene(0, "train", int(name)).objects, key=lambda o: o.box[:2])
            wanted = [
                1 + (SHAPES.index(o.shape) * len(COLOURS) + COLOURS.index(o.colour)) * 2
                + ("small", "large").index(o.size)
                for o in things
            ]  # fmt: skip
            assert seen == wanted
            near = [int(((entries - f.astype(float)) ** 2).sum(1).argmin()) for f in features]
            assert near == codes.tolist()
