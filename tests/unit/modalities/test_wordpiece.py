"""BERT's vocabularies: ids as the library's, special units, words, sizes."""

import json
import unicodedata

import numpy as np
import pytest

from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import vocabulary
from crossloom.modalities.wordpiece import WordPiece
from crossloom.testing import check_modality
from crossloom.units import BadSample, Fate, Passage, keyed_rng

pytest.importorskip("tokenizers")
RNG = keyed_rng("test")
SPECIALS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["play", "##ing", "##er", "un", "##play", "##able", "cat", "É", "é", "e", "E", "A", "a",
          "##s", "!", ",", "中", "国", "##国", "[", "]", "MASK", "mask", "Cat", "'", "t", "don",
          "straße", "ß", "и", "й", "##й", "ка", "##ка", "म", "##े", "1", "##2"]  # fmt: skip
TEXTS = [
    "Playing, unplayable CATS!", "cat-cat's don't", "中国cat国", "É é É E\u0301", "[MASK] mask",
    "straße", "Ийка", "a\u200bcat\u00adcat", "a\tcat\ncat\u3000cat", "मे", "12 1 2", "qqq",
    "a" * 101, "\ufffd\x00cat", "“cat”", "cat.cat,cat", "\u00a0cat\u2028a",
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join([*SPECIALS, *PIECES]) + "\n", "utf-8")
    return file


def spec(path, **fields):
    return Text(vocabulary=str(path), **{"layout": "wordpiece", "limit": 12, **fields})


def pieces(text, units):
    return [text.vocab.pieces[i] for i in units.content["token"]]


@pytest.mark.peers
@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_ids_are_those_of_transformers(path, cased, legacy):
    if legacy:  # written in Python, apart from the library that we use
        module = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
        peer = module.BertTokenizerLegacy(str(path), do_lower_case=not cased)
    else:
        transformers = pytest.importorskip("transformers")
        peer = transformers.BertTokenizer(str(path), do_lower_case=not cased)
    ours = WordPiece(path, cased=cased)
    assert (ours.begin, ours.end, ours.mask) == (3, 4, 5)
    assert peer.vocab_size == ours.size
    for text in TEXTS:
        if "[MASK]" in text:
            continue  # they take it for a special, see below
        if legacy:  # it composes letters and accents first; the library's own no longer does
            text = unicodedata.normalize("NFC", text)
        expected = peer(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == expected, text


def test_specials_written_in_a_text_are_taken_literally(path):
    vocab = WordPiece(path, cased=True)
    assert [vocab.pieces[i] for i in vocab.encode("[MASK]")] == ["[", "MASK", "]"]


def test_one_and_two_passages(path):
    text = spec(path, segments=2)
    one = text.decode({"text": (Passage("en", "Playing cats!"),)}, RNG)
    assert pieces(text, one) == ["[CLS]", "play", "##ing", "cat", "##s", "!", "[SEP]"]
    assert one.content["segment"].tolist() == [0] * 7
    assert one.group.tolist() == [0, 1, 1, 2, 2, 3, 4]
    assert one.maskable.tolist() == [False, *[True] * 5, False]
    two = text.decode({"text": (Passage("en", "cat"), Passage("en", "a cat"))}, RNG)
    assert pieces(text, two) == ["[CLS]", "cat", "[SEP]", "a", "cat", "[SEP]"]
    assert two.content["segment"].tolist() == [0, 0, 0, 1, 1, 1]
    assert two.position.tolist() == list(range(6))
    assert len(set(two.group.tolist())) == 6


def test_two_passages_fill_the_limit(path):
    text = spec(path, limit=8)
    units = text.decode({"text": (Passage("en", "cat " * 9), Passage("en", "a a"))}, RNG)
    assert pieces(text, units) == ["[CLS]", "cat", "cat", "cat", "[SEP]", "a", "a", "[SEP]"]


def test_swapped_units_are_neither_special_nor_unused(path):
    text = spec(path)
    units = text.decode({"text": (Passage("en", "cat " * 10),)}, RNG)
    fate = np.where(units.maskable, Fate.SWAP, Fate.KEEP)
    drawn = {
        i
        for n in range(40)
        for i in text.substitute(units, fate, keyed_rng(n))["token"][1:-1].tolist()
    }
    assert drawn == set(range(len(SPECIALS), len(SPECIALS) + len(PIECES)))


def test_contract(path):
    text = spec(path, segments=2, positions=20, offset=2, dropout=0.0)
    check_modality(text, {"text": (Passage("en", "playing cats"), Passage("en", "a cat!"))})


def test_a_text_of_nothing(path):
    with pytest.raises(BadSample, match="no units"):
        spec(path).decode({"text": (Passage("en", "\u200b"),)}, RNG)


def test_text_comes_back(path):
    vocab = WordPiece(path)
    assert vocab.decode([3, *vocab.encode("Playing cats!").tolist(), 4]) == "playing cats !"
    assert vocab.spans("Playing cats!").tolist() == [[0, 4], [4, 7], [8, 11], [11, 12], [12, 13]]


def test_a_tokenizer_json_is_read_alike_by_whatever_name(path, tmp_path):
    ids = {p: n for n, p in enumerate([*SPECIALS, *PIECES])}
    file = tmp_path / "text.model"
    file.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}), "utf-8")
    assert WordPiece(file).pieces == WordPiece(path).pieces
    assert WordPiece(file).identity == WordPiece(path).identity
    assert WordPiece(file).identity != WordPiece(path, cased=True).identity


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such vocabulary"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"has no \[MASK\]"),
        ("\n".join([*SPECIALS, "a", "a"]), "listed twice"),
        ('{"model": []}', "not a WordPiece vocabulary"),
        (b"\xff\xfe", "not a WordPiece vocabulary"),
    ],
)
def test_what_is_no_vocabulary_is_said(tmp_path, content, words):
    file = tmp_path / "vocab.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as found:
        WordPiece(file)
    assert str(file) in str(found.value)


@pytest.mark.parametrize("layout", ["own", "xlm-r"])
def test_word_pieces_under_another_layout_name_the_one_to_set(path, layout):
    with pytest.raises(ValueError, match=rf"a WordPiece .* layout is {layout}; set .*=wordpiece"):
        vocabulary(str(path), layout)


def test_a_model_of_known_size_needs_no_file(tmp_path, path):
    text = Text(vocabulary=str(tmp_path / "none"), layout="wordpiece", size=500, segments=2)
    assert text.predictable()["token"].dim == 500
    embedder = text.embedder(8)
    assert embedder.token.weight.shape == (500, 8)
    assert embedder.mask == 103
    assert Text(vocabulary="none", size=9, layout="xlm-r").embedder(4).mask == 8
    assert Text(vocabulary="none", size=9).embedder(4).mask == 4
    # with the file, its own
    count = len(SPECIALS) + len(PIECES)
    assert spec(path, size=count).embedder(4).mask == 5


def test_a_vocabulary_of_another_size_names_both(path):
    count = len(SPECIALS) + len(PIECES)
    with pytest.raises(ValueError, match=rf"vocab.txt: has {count} ids, but .* size: 500"):
        spec(path, size=500).decode({"text": (Passage("en", "cat"),)}, RNG)
    assert spec(path, size=count).vocab.size == count


def test_positions_start_at_the_offset(path):
    import torch

    from crossloom.batch import Stream, ViewBatch

    one, two = (spec(path, offset=n, dropout=0.0).embedder(8).eval() for n in (0, 2))
    assert two.position.weight.shape == (14, 8)
    with torch.no_grad():
        two.position.weight[2:] = one.position.weight
        for part in ("token", "norm"):
            getattr(two, part).load_state_dict(getattr(one, part).state_dict())
    units = spec(path).decode({"text": (Passage("en", "cat cat"),)}, RNG)
    none = np.zeros(4, bool)
    stream = Stream.build(units.content, {}, units.position, none, np.array([4]))
    stream = ViewBatch(streams={"x": stream}).to("cpu").streams["x"]
    assert torch.equal(one(stream), two(stream))


def test_a_table_of_positions_must_suffice(path):
    with pytest.raises(ValueError, match=r"positions is 13; .* need 14"):
        spec(path, positions=13, offset=2)


def test_layouts_are_loaded_once(path):
    assert vocabulary(str(path), "wordpiece") is vocabulary(str(path), "wordpiece")
    assert vocabulary(str(path), "wordpiece") is not vocabulary(str(path), "wordpiece-cased")
