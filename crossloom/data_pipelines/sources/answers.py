"""Answers to questions about images: normalising and scoring them as VQA v2's evaluation does.

The rules are those of the official evaluation (GT-Vision-Lab/VQA, ``vqaEval.py``), quirks
included, since a score is only comparable when an answer counts as right where it does there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
# Each of these is restored when one of its apostrophes, and one only, has been left out.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _restored() -> dict[str, str]:
    found = {"somebody'd": "somebodyd"}  # a slip of the official table, kept
    for whole in _CONTRACTIONS.split():
        for place in (m.start() for m in re.finditer("'", whole)):
            found[whole[:place] + whole[place + 1 :]] = whole
    return found


_RESTORED = _restored()


def normalise(answer: str) -> str:
    """An answer as the official evaluation compares it.

    Small letters; punctuation gone, or a space where it joined two words; periods gone unless a
    digit follows; number words up to ten as digits; articles gone; apostrophes put back.

    >>> normalise("The T-shirt, dont."), normalise("two 1,000"), normalise("none")
    ("t shirt don't", '2 1000', '0')
    """
    # a comma between digits, or a mark beside a space, anywhere decides for all its occurrences
    text, plain = answer, answer
    digits = _COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        apart = digits or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if apart else " ")
    words = [_NUMBERS.get(w, w) for w in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_RESTORED.get(w, w) for w in words if w not in _ARTICLES)


def soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """Official VQA scores of the answers of ten people, best first.

    An answer that ``c`` of them gave scores ``min(n / 3, 1)`` averaged over the ten choices of nine
    people, ``n`` of whom gave it: 0.3, 0.6, 0.9 and 1 for ``c`` of 1, 2, 3 and 4 or more. Where
    people disagree, answers are normalised before they are counted.

    >>> soft_scores(["red"] * 4 + ["Red!"] * 3 + ["blue"] * 2 + ["teal"])
    {'red': 1.0, 'blue': 0.6, 'teal': 0.3}
    """
    given = [" ".join(answer.split()).lower() for answer in answers]
    if len(set(given)) > 1:
        given = [normalise(answer) for answer in given]
    people = len(given)
    scores = {}
    for answer, count in Counter(given).most_common():
        without = min((count - 1) / 3, 1)  # the one left out had given it
        having = min(count / 3, 1)
        score = (count * without + (people - count) * having) / people
        if answer and score > 0:
            scores[answer] = round(score, 4)
    return scores


def best_answers(best: Counter[str], least: int) -> list[str]:
    """Answers for ``answers.txt``: the most frequent first, of those best at least so often."""
    ordered = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, count in ordered if count >= least]
