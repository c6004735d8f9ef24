"""SpeechBERT: written and spoken words in one BERT."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Plain, Texts
from crossloom.modalities.speech import Speech
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.recipes.parts import bert_adam, bert_plan, bert_text, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "speech")


def speechbert() -> Recipe:
    """SpeechBERT (Chuang et al. 2020): one BERT hides written words, and spoken ones.

    Followed: section 3; no code was released. Text is trained as in BERT (``mlm``). Of an utterance
    15 % of the words are hidden, each with all its sound, and asked for by name (``spoken``), which
    is scored with the text's table, so that a spoken word lies where the written one does.

    Data: samples with sound, ``texts``, and ``words`` (each with its begin and end in seconds, from
    forced alignment, which the paper too presupposes; our converter of LibriSpeech does not
    write them). Start from BERT (``start``), as the paper does.

    Otherwise than there: the paper first trains an autoencoder of words (section 3.2): a recurrent
    network reads the frames of one word into one vector, another says the frames again from it
    (squared error), and the vector is drawn to BERT's embedding of the written word (L1 distance).
    Such vectors then stand for spoken words in BERT. Here there is no such network, nor a stage of
    its own: a spoken word is the 40 ms windows that it lasts, each embedded by convolutions, and is
    named at its first window, by the first of its pieces. In place of the reconstruction, the sound
    of hidden words is predicted (``sound``); in place of the L1 distance, words are named by the
    text's table. So sequences are longer than there, and a word has no single vector. Uncertain:
    weights, batch, rate and steps.

    Parameters: BERT-base without its pooler (108.9 M); the windows' convolutions 2.0 M, heads
    1.5 M.
    """
    text = bert_text(limit=128)
    heard = View(
        name="heard", streams=("speech",),
        hide={"speech": Hide(rate=0.15, show=0.1, swap=0.0, by="group")},
    )  # fmt: skip
    recordings = train("librispeech")
    return Recipe(
        name="speechbert",
        data="shards",
        modalities={
            "text": text,
            "speech": Speech(
                words=True, vocabulary=text.vocabulary, layout=text.layout, size=text.size,
                lent={"token": "text"},
            ),
        },
        plan=bert_plan(STREAMS),
        objectives={
            "mlm": mlm(("text",)),
            "spoken": Reconstruct(view=heard, stream="speech", target="token", shares="mlm"),
            "sound": Reconstruct(view=heard, stream="speech", target="mel"),
        },
        mixture={
            "written": Component(
                shards=recordings, reader=Texts(languages=("en",)), objectives=("mlm",)
            ),
            "spoken": Component(
                shards=recordings, reader=Plain(), objectives=("spoken", "sound")
            ),
        },
        steps=100_000,
        examples=64,
        optim=bert_adam(5e-5),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def speechbert_tiny() -> Recipe:
    """SpeechBERT over the world's spoken captions, in all ten languages, small."""
    recipe = speechbert()
    captions = {n: replace(c, shards="speech-train-*.tar") for n, c in recipe.mixture.items()}
    captions["written"] = replace(captions["written"], reader=Texts())
    return tiny(recipe, single_stream(STREAMS, layers=2, width=128, heads=4), captions)
