"""XLM's vocabularies: ids as transformers', words by Moses, one file or two."""

import json
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from crossloom.interop import exchange, xlm
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import vocabulary
from crossloom.modalities.word_pairs import WordPairs, joined, parted
from crossloom.testing import check_modality
from crossloom.units import Passage, keyed_rng

pytest.importorskip("sacremoses")
SPECIALS = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10))]
#: Text that Moses cuts by language, with what its normalising and XLM's lower case change.
TEXTS = [
    ("en", "Mr. Smith doesn't like \"it's\" (at all), e.g. 3,000.50 dollars…"),
    ("en", "“Curly” ‘quotes’ – and — dashes… ½ ﬁne\u00a0space\u200b \tEND!"),
    ("fr", "L'été, j'ai vu l'école « où » l'on dort ; aujourd'hui."),
    ("de", "Dr. Müller zahlt 3.000,50 Euro, z.B. am 3. Mai!"),
    ("it", "Dell'acqua, perché no?"), ("ro", "Ştefan şi Țara: îngheţat, Brâncuși ă â"),
    ("ru", "Ёлка и й — 5 шт., т.е. Москва."), ("el", "Ο Σωκράτης, άνθρωπος."),
    ("ar", "قال: مرحبا، كيف حالك؟"), ("hi", "नमस्ते दुनिया। यह क्या है?"), ("vi", "Tiếng Việt đấy."),
    ("tr", "İstanbul'da ısı"), ("zz", "of no language that Moses knows, i.e. none."),
    ("en", "！full？ （width） １２３：４"), ("en", "a"), ("en", "<unk> a & b | c [d]"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary of the texts' letters and their most frequent pairs; some joins have no id."""
    at = tmp_path_factory.mktemp("pairs")
    words = [w for _, text in TEXTS for w in [*text.lower().split(), *text.split()]]
    pieces = [[*w[:-1], w[-1] + "</w>"] for w in words]
    letters = dict.fromkeys(c for some in pieces for c in some if "½" not in c)
    merges = []
    for _ in range(150):
        pairs = Counter(p for some in pieces for p in pairwise(some))
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for some in pieces:
            for n in range(len(some) - 2, -1, -1):
                if tuple(some[n : n + 2]) == best:
                    some[n : n + 2] = ["".join(best)]
    found = dict.fromkeys([*SPECIALS, *letters, *map("".join, merges[:140])])
    (at / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(found)}), "utf-8")
    (at / "merges.txt").write_text("".join(f"{a} {b} 7\n" for a, b in merges), "utf-8")
    return at


@pytest.mark.peers
@pytest.mark.parametrize("cased", [False, True])
def test_ids_are_those_of_transformers(folder, cased):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.XLMTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        do_lowercase_and_remove_accent=not cased,
    )
    ours = WordPairs(folder / "vocab.json", cased=cased)
    assert (ours.mask, ours.pad) == (theirs.mask_token_id, theirs.pad_token_id) == (5, 2)
    assert ours.unknown == theirs.unk_token_id
    unknown = 0
    for language, text in TEXTS:
        expected = theirs.convert_tokens_to_ids(theirs._tokenize(text, lang=language))
        assert ours.encode(text, language).tolist() == expected, text
        unknown += expected.count(ours.unknown)
    assert unknown > 0


@pytest.mark.peers
def test_chinese_is_cut_at_its_spaces(folder, monkeypatch):
    transformers = pytest.importorskip("transformers")
    ours = WordPairs(folder / "vocab.json")
    theirs = transformers.XLMTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text = "我们 在 这里 ， a 。"
    # the segmenter gives what was cut already back
    monkeypatch.setitem(sys.modules, "rjieba", SimpleNamespace(cut=str.split))
    expected = theirs.convert_tokens_to_ids(theirs._tokenize(text, lang="zh"))
    assert ours.encode(text, "zh").tolist() == expected


def test_pairs_by_hand(tmp_path):
    pieces = [*SPECIALS, "a", "b", "a</w>", "b</w>", "ab", "ab</w>", "abab</w>"]
    ids = {p: n for n, p in enumerate(pieces)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("a b\na b</w>\nab ab</w>\n")
    vocab = WordPairs(tmp_path / "vocab.json")

    def cut(text):
        return [vocab.pieces[n] for n in vocab.encode(text)]

    assert cut("abab") == ["abab</w>"]
    assert cut("ababa") == ["ab", "ab", "a</w>"]
    assert cut("aab ac") == ["a", "ab</w>", "a", "<unk>"]
    assert vocab.decode(vocab.encode("aab abab")) == "aab abab"
    assert vocab.ordinary.tolist() == list(range(14, 21))


def test_the_language_decides_how_words_are_cut(folder):
    vocab = WordPairs(folder / "vocab.json")
    text = "l'on dit"
    assert vocab.encode(text, "fr").tolist() != vocab.encode(text, "de").tolist()
    spec = Text(vocabulary=str(folder / "vocab.json"), layout="xlm", limit=40)
    for language in ("fr", "de"):
        units = spec.decode({"text": (Passage(language, text),)}, keyed_rng(0))
        assert units.content["token"].tolist() == [1, *vocab.encode(text, language), 1]


def test_pairs_of_sentences_are_as_in_xlm(folder):
    """``</s> a </s> </s> b </s>``, positions of the second from 0 (``src/utils.py``)."""
    spec = Text(vocabulary=str(folder / "vocab.json"), layout="xlm", limit=40, restart=True)
    passages = (Passage("en", "a"), Passage("fr", "école"))
    units = spec.decode({"text": passages}, keyed_rng(0))
    token = units.content["token"].tolist()
    assert [n for n, t in enumerate(token) if t == 1] == [0, 2, 3, len(token) - 1]
    assert units.position.tolist() == [*range(3), *range(len(token) - 3)]
    check_modality(spec, {"text": passages})


def test_one_file_is_as_good_as_two(folder, tmp_path):
    whole = tmp_path / "text.model"
    whole.write_text(joined(folder / "vocab.json"), "utf-8")
    one, two = (vocabulary(str(p), "xlm") for p in (whole, folder / "vocab.json"))
    assert one.identity == two.identity
    assert one.identity != vocabulary(str(whole), "xlm-cased").identity
    assert one.encode("Mr. Smith").tolist() == two.encode("Mr. Smith").tolist()
    for file, content in parted(whole).items():
        (tmp_path / file).write_text(content, "utf-8")
    assert WordPairs(tmp_path / "vocab.json").identity == one.identity


@pytest.mark.peers
@pytest.mark.parametrize("cased", [False, True])
def test_a_checkpoint_brings_its_vocabulary_and_takes_it_along(folder, tmp_path, cased):
    transformers = pytest.importorskip("transformers")
    ids = json.loads((folder / "vocab.json").read_text("utf-8"))
    config = transformers.XLMConfig(
        vocab_size=len(ids), emb_dim=16, n_layers=1, n_heads=2, n_langs=2,
        lang2id={"en": 0, "fr": 1}, id2lang={0: "en", 1: "fr"}, max_position_embeddings=32,
    )  # fmt: skip
    published = tmp_path / "published"
    transformers.XLMWithLMHeadModel(config).save_pretrained(published)
    for file in ("vocab.json", "merges.txt"):
        (published / file).write_bytes((folder / file).read_bytes())
    settings = {"do_lowercase_and_remove_accent": not cased}
    (published / "tokenizer_config.json").write_text(json.dumps(settings))
    exchange.import_checkpoint(str(published), tmp_path / "run")
    text = exchange.open_run(tmp_path / "run").modalities["text"]
    assert text.layout == ("xlm-cased" if cased else "xlm")
    assert text.vocabulary == str(tmp_path / "run" / "text.model")
    exchange.export_run(tmp_path / "run", "transformers", tmp_path / "out")
    theirs = transformers.XLMTokenizer.from_pretrained(str(tmp_path / "out"))
    for language, line in TEXTS:
        expected = theirs.convert_tokens_to_ids(theirs._tokenize(line, lang=language))
        assert text.vocab.encode(line, language).tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not a vocabulary of XLM"),
        ('{"a": 0}', "there is no merges.txt beside it"),
        ('{"vocab": {"a": 0}, "merges": []}', "has no <s>"),
        (json.dumps({"vocab": dict.fromkeys(SPECIALS, 0), "merges": []}), "ids have gaps"),
        ("{", "not a vocabulary of XLM"),
    ],
)
def test_files_that_are_none_say_so(tmp_path, content, message):
    file = tmp_path / "vocab.json"
    with pytest.raises(ValueError, match="no such vocabulary"):
        WordPairs(file)
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        WordPairs(file)


def test_models_of_known_size_do_without_the_file():
    assert Text(vocabulary="gone.json", layout="xlm", size=100)._mask() == 5
    assert xlm.MODEL_TYPES == ("xlm",)
