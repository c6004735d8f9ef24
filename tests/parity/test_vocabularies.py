"""Ids of text in many languages, as transformers gives them for the same files.

The slow test reads the sentences of a folder of Tatoeba, which ``CROSSLOOM_TATOEBA`` names::

    CROSSLOOM_TATOEBA=path/to/tatoeba pytest -m slow tests/parity/test_vocabularies.py
"""

import os
import unicodedata
from itertools import chain, islice, zip_longest
from pathlib import Path

import pytest
import sentencepiece

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import sentences
from crossloom.modalities.vocabularies import vocabulary

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.peers

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def check_pieces(lines, folder, size):
    """XLM-R and mBART: one SentencePiece model."""
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=size, hard_vocab_limit=False, character_coverage=0.9995, minloglevel=2,
    )  # fmt: skip
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(str(folder))
    path = str(folder / "sentencepiece.bpe.model")
    ours, signed = vocabulary(path, "xlm-r"), vocabulary(path, "mbart")
    assert ours.mask == theirs.mask_token_id
    assert ours.size == len(theirs)
    unknown = 0
    for line, expected in zip(
        lines, theirs(lines, add_special_tokens=False).input_ids, strict=True
    ):
        assert ours.encode(line).tolist() == expected, line
        assert signed.encode(line).tolist() == expected, line
        unknown += ours.unknown in expected
    return unknown


def check_words(lines, folder, size):
    """mBERT, cased; also beside the tokenizer in Python, which is apart from the library we use."""
    folder.mkdir()
    trained = tokenizers.BertWordPieceTokenizer(
        lowercase=False, strip_accents=False, handle_chinese_chars=True
    )
    trained.train_from_iterator(
        lines, vocab_size=size, special_tokens=SPECIALS, show_progress=False
    )
    trained.save_model(str(folder))
    path = str(folder / "vocab.txt")
    ours = vocabulary(path, "wordpiece-cased")
    theirs = transformers.BertTokenizer(path, do_lower_case=False)
    assert ours.size == len(theirs)
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    apart = legacy.BertTokenizerLegacy(path, do_lower_case=False)
    for line in lines:
        assert ours.encode(line).tolist() == theirs(line, add_special_tokens=False).input_ids, line
        composed = unicodedata.normalize("NFC", line)  # as the one in Python does first
        found = apart.convert_tokens_to_ids(apart.tokenize(composed))
        assert ours.encode(composed).tolist() == found, line


@pytest.fixture(scope="module")
def lines(world):
    """Sentences of the world in its languages, Chinese, Arabic and Hindi among them."""
    found = dict.fromkeys(text for _, text in sentences(open_shards("*.tar", world)))
    return [*islice(found, 0, None, max(1, len(found) // 1500))]


def test_pieces_of_the_world(lines, tmp_path):
    assert any("\u4e00" <= c <= "\u9fff" for line in lines for c in line)
    check_pieces(lines, tmp_path / "pieces", 400)


def test_words_of_the_world(lines, tmp_path):
    check_words(lines, tmp_path / "words", 400)


@pytest.mark.slow
@pytest.mark.skipif("CROSSLOOM_TATOEBA" not in os.environ, reason="needs a folder of Tatoeba")
def test_ten_thousand_lines_of_tatoeba(tmp_path):
    files = sorted(Path(os.environ["CROSSLOOM_TATOEBA"]).glob("tatoeba.*-eng.*"))
    texts = [f.read_text("utf-8").splitlines() for f in files]
    # a line of each file, then the next of each
    lines = [*islice(filter(None, chain.from_iterable(zip_longest(*texts))), 10_000)]
    assert len(lines) == 10_000
    assert check_pieces(lines, tmp_path / "pieces", 8000) > 0  # rare characters have no piece
    check_words(lines, tmp_path / "words", 8000)
