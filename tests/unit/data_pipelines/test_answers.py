"""One list of answers of several sets."""

import io
import json
import tarfile

import pytest
from typer.testing import CliRunner

from crossloom.cli import app
from crossloom.data_pipelines.answers import list_answers


def shard(path, *answers, broken=False):
    """One sample for each list of questions, given by their scored answers."""
    with tarfile.open(path, "w") as tar:
        for number, questions in enumerate(answers):
            content = {"questions": [{"text": {"en": "?"}, "answers": a} for a in questions]}
            members = {"json": json.dumps(content).encode(), "jpg": b"no picture"}
            if broken and number == 0:
                members["json"] = b"{"
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def sets(tmp_path):
    one = shard(tmp_path / "a.tar", [{"red": 0.3, "blue": 1.0}, {"yes": 1.0}], [{"yes": 0.6}])
    two = shard(tmp_path / "b.tar", [{"two": 1.0}, {}], [{"yes": 1.0}, {"two": 0.9, "yes": 0.3}])
    return [one, two]


def test_best_answers_of_all_sets_the_most_frequent_first(sets):
    # red is nobody's best; blue comes last, as one question has it
    assert list_answers(sets) == ["yes", "two", "blue"]
    assert list_answers(sets[:1]) == ["yes", "blue"]
    assert list_answers(sets[::-1], most=2) == ["yes", "two"]
    assert list_answers(sets, least=2) == ["yes", "two"]


def test_too_few_answers_are_an_error_that_says_how_many(sets):
    with pytest.raises(
        ValueError, match=r"3 answers to the questions of 2 shards .*; 4 are wanted"
    ):
        list_answers(sets, most=4)
    with pytest.raises(ValueError, match="0 answers"):
        list_answers(sets, least=9)


def test_a_sample_that_does_not_parse_is_left_out(tmp_path):
    path = shard(tmp_path / "c.tar", [{"yes": 1.0}], [{"no": 1.0}], broken=True)
    assert list_answers([path]) == ["no"]


def test_the_command_writes_what_objectives_read(sets, tmp_path):
    out = tmp_path / "joined" / "answers.txt"
    done = CliRunner().invoke(app, ["shards", "answers", *sets, "--out", str(out), "--most", "2"])
    assert done.exit_code == 0, done.output
    assert out.read_text() == "yes\ntwo\n"
