"""Texts with a language token (mBART), sentences, and tables that streams share."""

from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import vocabulary
from crossloom.objectives.presets import MBART, denoise
from crossloom.objectives.view import Hide, draw_fates
from crossloom.testing import check_modality
from crossloom.units import BadSample, Passage, keyed_rng

RNG = keyed_rng("test")
#: Made-up lines in several scripts, with forms that normalising changes.
STEMS = ("kalo minu ertas", "дом ветер лодка", "山川湖海", "βίος τρέχει", "नमस्ते वन", "שלום ים")
LINES = [f"{stem} {n % 9}, {stem[::-1]} {n}!" for n in range(60) for stem in STEMS]
LINES += ['"minu?" 3.14 山。'] * 9
HARD = [
    "ﬁne ﬂow",  "Ｆｕｌｌ　ｗｉｄｔｈ", "  many   spaces\tand tabs ", "e\u0301 é", "☃ unknown", "",
    "soft\u00adhyphen", "zero\u200bwidth", "½ ① ™", "a\u00a0b", "…", "<s> </s> x", "한글 조각",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES), model_prefix=str(at / "sentencepiece.bpe"),
        vocab_size=200, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return at


def spec(folder, **fields):
    path = str(folder / "sentencepiece.bpe.model")
    return Text(vocabulary=path, **{"layout": "mbart", "limit": 40, **fields})


def decoded(text, *passages):
    return text.decode({"text": tuple(Passage(*p) for p in passages)}, RNG)


def tokens(text, *passages):
    units = decoded(text, *passages)
    return [text.vocab.pieces[i] for i in units.content["token"]]


@pytest.mark.peers
def test_ids_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(str(folder))
    ours, with_signs = (spec(folder, layout=x).vocab for x in ("xlm-r", "mbart"))
    assert ours.mask == theirs.mask_token_id
    for line in [*LINES, *HARD]:
        if "<s>" in line:
            continue  # they take it for a special, here texts are literal
        expected = theirs(line, add_special_tokens=False)["input_ids"]
        assert ours.encode(line).tolist() == with_signs.encode(line).tolist() == expected, line


@pytest.mark.peers
def test_specials_are_where_transformers_has_them(folder):
    """Lines that normalising leaves alone: of a bare model file their tokenizer leaves it out."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MBartTokenizer.from_pretrained(str(folder), src_lang="de_DE")
    text = spec(folder)
    assert (text.vocab.size, text.vocab.mask) == (len(theirs), theirs.mask_token_id)
    assert text.vocab.signs == theirs.lang_code_to_id
    for line in LINES[:30]:
        ids = decoded(text, ("de", line)).content["token"].tolist()
        assert ids[:40] == theirs(line)["input_ids"]


def test_what_is_read_ends_with_its_language_and_what_is_said_begins_with_it(folder):
    words = ["▁", "山", "川"]
    first = tokens(spec(folder), ("zh", "山川"))
    assert first[-2:] == ["</s>", "zh_CN"]
    assert "".join(first[:-2]) == "".join(words)
    said = tokens(spec(folder, sign="first"), ("zh_CN", "山川"))
    assert said == ["zh_CN", *first[:-2], "</s>"]
    both = tokens(spec(folder), ("ru", "дом"), ("ru", "ветер"))
    assert both.count("</s>") == 2
    assert both[-1] == "ru_RU"


@pytest.mark.parametrize("sign", ["first", "last"])
def test_only_pieces_can_be_hidden_and_the_limit_holds(folder, sign):
    text = spec(folder, sign=sign, limit=8)
    units = decoded(text, ("en", "kalo minu ertas " * 9))
    assert len(units) == 8
    fixed = [0, 7] if sign == "first" else [6, 7]
    assert np.flatnonzero(~units.maskable).tolist() == fixed
    assert len(set(units.group[fixed].tolist())) == 2
    assert not set(units.group[fixed].tolist()) & set(units.group[units.maskable].tolist())


def test_languages_are_specials(folder):
    vocab = spec(folder).vocab
    barred = {0, 1, 2, 3, vocab.mask, *vocab.signs.values()}
    assert not barred & set(vocab.ordinary.tolist())
    assert len(vocab.ordinary) == vocab.size - len(barred)
    ids = [vocab.signs["ru_RU"], *vocab.encode("дом"), vocab.end]
    assert vocab.decode([int(i) for i in ids]) == "дом"
    assert Text(vocabulary="none", size=99, layout="mbart")._mask() == 98


def test_a_language_without_a_token_is_a_bad_sample(folder):
    with pytest.raises(BadSample, match="no token for language 'sw'"):
        decoded(spec(folder), ("sw", "kalo"))


@pytest.fixture(scope="module")
def own(world):
    """A vocabulary of our own with tokens for three languages."""
    path = str(world / "tokenizer.model")
    return Text(vocabulary=path, limit=40, signs=("en", "de", "sw"))


def test_languages_of_ones_own_come_after_the_vocabulary(own):
    plain = replace(own, signs=())
    assert own.vocab.size == plain.vocab.size + 3
    assert list(own.vocab.signs.items()) == [
        (code, plain.vocab.size + n) for n, code in enumerate(("en", "de", "sw"))
    ]
    assert own.vocab.mask == plain.vocab.mask
    assert own.identity() != plain.identity() != replace(own, signs=("en",)).identity()
    assert own.predictable()["token"].dim == plain.vocab.size + 3
    line = "A green moon is above a blue circle."
    ids = plain.vocab.encode(line).tolist()
    end, sign = plain.vocab.end, own.vocab.signs["sw"]
    assert decoded(own, ("sw", line)).content["token"].tolist() == [*ids, end, sign]
    said = decoded(replace(own, sign="first"), ("sw", line)).content["token"]
    assert said.tolist() == [sign, *ids, end]
    assert own.vocab.decode(said.tolist()) == line
    assert not set(own.vocab.signs.values()) & set(own.vocab.ordinary.tolist())
    with pytest.raises(BadSample, match="no token for language 'fr'"):
        decoded(own, ("fr", line))
    with pytest.raises(ValueError, match="signs are for layout own"):
        replace(own, layout="mbart")


def test_blocks_keep_their_language_at_their_end(own):
    """What is read and what is said of joined documents are cut alike."""
    own = replace(own, limit=10, sentences=True)
    said = replace(own, sign="first")
    lines = ["A green moon is above a blue circle. A red star.", "A blue star.", "A small moon."]
    loose = [[t.loose({"text": (Passage("de", x),)}, RNG) for x in lines] for t in (own, said)]
    one, other = own.packed(loose[0]), said.packed(loose[1])
    sign, end = own.vocab.signs["de"], own.vocab.end
    assert [n for n, _ in one] == [n for n, _ in other]
    assert len(one) > 2
    words = []
    for (_, read), (_, told) in zip(one, other, strict=True):
        ids = read.content["token"].tolist()
        assert len(ids) <= 10
        assert ids[-2:] == [end, sign]
        assert told.content["token"].tolist() == [sign, *ids[:-1]]
        assert read.targets["sentence"][-1] == told.targets["sentence"][0] == -1
        assert read.position.tolist() == told.position.tolist() == list(range(len(ids)))
        assert not read.maskable[-2:].any()
        assert not told.maskable[[0, -1]].any()
        words += [i for i in ids if i not in (sign, end)]
    # every unit once, those of a long document first
    assert sorted(words) == sorted(i for x in lines for i in own.vocab.encode(x).tolist())


def test_the_contract_holds(folder):
    for fields in ({}, {"sign": "first"}, {"layout": "xlm-r", "constant": True}):
        sample = {"text": (Passage("en", "kalo minu. ertas!"),)}
        check_modality(spec(folder, sentences=True, **fields), sample)


def test_sentences_are_told_apart(folder):
    text = spec(folder, layout="xlm-r", sentences=True, limit=60)
    line = 'kalo 3.14 minu. "ertas?" minu! 山川。湖海'
    units = decoded(text, ("", line), ("", "kalo"))
    number = units.targets["sentence"]
    assert number[0] == number[-1] == -1
    said = [
        text.vocab.decode(units.content["token"][number == n].tolist())
        for n in range(int(number.max()) + 1)
    ]
    assert said == ["kalo 3.14 minu.", '"ertas?"', "minu!", "山川。", "湖海", "kalo"]
    # what is drawn for one unit after the other does not depend on it
    plain = decoded(spec(folder, layout="xlm-r", limit=60), ("", line), ("", "kalo"))
    fates = [draw_fates(u, Hide(), keyed_rng(1)) for u in (units, plain)]
    assert (fates[0] == fates[1]).all()


def stream(**content):
    token = np.array([5, 6, 7])
    built = Stream.build(
        {"token": token, **content}, {}, np.arange(3), np.zeros(3, bool), np.array([3])
    )
    return ViewBatch(streams={"text": built}).to("cpu").streams["text"]


def test_scaled_pieces_and_the_constant_are_added_before_the_norm():
    text = Text(
        vocabulary="none", size=20, limit=4, offset=2, constant=True, scaled=True, norm=False,
        dropout=0.0,
    )  # fmt: skip
    embed = text.embedder(9)
    with torch.no_grad():
        embed.constant.copy_(torch.arange(9.0))
    given = stream()
    got = embed(given)
    expected = embed.token.weight[5:8] * 3 + embed.position.weight[2:5] + torch.arange(9.0)
    assert torch.allclose(got, expected)


def test_words_are_lent_and_nothing_else():
    text = Text(vocabulary="none", size=20, limit=4, dropout=0.0)
    lender, user = text.embedder(8), replace(text, words_of="text").embedder(8)
    user.borrow({"text": lender, "target": user})
    assert user.tied("token") is lender.token.weight
    assert not [n for n, _ in user.named_parameters() if "token" in n]
    user(stream()).sum().backward()
    assert lender.token.weight.grad is not None
    for wrong in ({}, {"text": user}, {"text": replace(text, size=21).embedder(8)}):
        with pytest.raises(ValueError, match="words_of: 'text' is no text"):
            replace(text, words_of="text").embedder(8).borrow(wrong)


def test_vocabularies_differ_in_identity(folder):
    path = str(folder / "sentencepiece.bpe.model")
    one, other = (vocabulary(path, x).identity for x in ("xlm-r", "mbart"))
    assert one != other


def test_denoising_shows_the_text_moved_and_infilled_and_asks_for_it_clean(folder):
    """From passages to a batch: mBART's two sides."""
    text = spec(folder, sentences=True)
    said = replace(text, field="target", sign="first", words_of="text")
    line = Passage("fr", "kalo minu ertas. kalo kalo minu! ertas minu kalo? minu ertas kalo.")
    sample = {"text": (line,), "target": (line,)}
    units = {"text": text.decode(sample, RNG), "target": said.decode(sample, RNG)}
    objective = replace(denoise(hide=MBART), transform=False)
    collator = Collator({"text": text, "target": said}, {"denoise": objective}, seed=1)
    sign, mask = text.vocab.signs["fr_XX"], text.vocab.mask
    clean = units["target"].content["token"].tolist()
    seen = set()
    for number in range(20):
        example = Example(key=str(number), sample=str(number), epoch=0, units=units, labels={})
        batch = collator.batch([example], ("denoise",), 1, others=False)
        streams = batch.views["denoise"].streams
        read = streams["text"].content["token"].tolist()
        assert read[-2:] == [text.vocab.end, sign]
        assert mask in read
        assert len(read) < len(clean)
        assert set(read) - {mask} <= set(clean)
        # what is said begins with the language; each unit is asked for the next, up to the end
        assert streams["target"].content["token"].tolist() == clean
        assert clean[0] == sign
        aim = batch.aims["denoise"]
        assert aim.index.tolist() == list(range(len(clean) - 1))
        assert aim.value.tolist() == clean[1:]
        seen.add(tuple(read))
    assert len(seen) > 10
