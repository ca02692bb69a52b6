"""CoNLL files: what is a word, what is not, and where a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.errors import ToolError
from fastserve.tools.evaluation.conll import Sentence, read_conll


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "data.conll"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_two_columns_with_tabs_are_words_and_tags_with_blank_lines_between_sentences(write) -> None:
    path = write("Ada\tB-person\nwrote\tO\n\t\n\n  \nLondon\tB-location\n")
    assert read_conll(path) == [
        Sentence(("Ada", "wrote"), ("B-person", "O"), 1),
        Sentence(("London",), ("B-location",), 6),
    ]


def test_four_columns_with_blanks_are_conll_2003_and_document_lines_are_left_out(write) -> None:
    path = write("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\n\nPeter NNP B-NP B-PER\n")
    assert [(sentence.words, sentence.tags) for sentence in read_conll(path)] == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("Peter",), ("B-PER",)),
    ]


def test_a_document_line_also_ends_a_sentence(write) -> None:
    assert len(read_conll(write("a O\n-DOCSTART- O\nb O\n"))) == 2


@pytest.mark.parametrize(
    ("columns", "words", "tags"),
    [((1, 2), "EU", "NNP"), ((1, 4), "EU", "B-ORG"), ((-4, -2), "EU", "B-NP"), ((2, 1), "NNP", "EU")],
)
def test_columns_are_chosen_from_the_front_or_the_back(write, columns: tuple[int, int], words: str, tags: str) -> None:
    (sentence,) = read_conll(write("EU NNP B-NP B-ORG\n"), columns)
    assert (sentence.words, sentence.tags) == ((words,), (tags,))


def test_a_hash_is_a_comment_unless_the_line_has_the_columns_of_a_word(write) -> None:
    path = write("# sent_id = 1\n#nothing\nnumber\tO\n#\tO\n#ner\tB-tag\n# O\n")
    assert read_conll(path)[0].words == ("number", "#", "#ner")


def test_a_hash_in_a_file_with_blanks_is_a_word_where_it_has_a_tag(write) -> None:
    assert read_conll(write("# about it all\n4:26 O\n# O\n"))[0].words == ("4:26", "#")


def test_marks_of_byte_order_at_the_beginning_and_alone_in_a_line_are_no_words(write) -> None:
    path = write("\ufeffAda\tB-person\r\n\r\n\ufeff\r\nDubbz\ufeff\tB-person")
    assert [sentence.words for sentence in read_conll(path)] == [("Ada",), ("Dubbz\ufeff",)]


def test_only_a_line_feed_ends_a_line(write) -> None:
    """U+2028 and U+0085 are characters of words on the web."""
    assert read_conll(write("a\u2028b\tO\nc\x85\tO\n"))[0].words == ("a\u2028b", "c\x85")


def test_a_blank_in_a_word_of_a_file_with_tabs_stays(write) -> None:
    assert read_conll(write("New York\tB-location\n"))[0].words == ("New York",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ada\tB-person\nwrote\n", r"data.conll:2: columns: got 1, at least 2 needed: 'wrote'"),
        ("Ada O\n\nwrote VBD O\n", r"data.conll:3: columns: got 3, the first line with a word has 2: 'wrote VBD O'"),
        ("Ada\tO\n\tO\n", r"data.conll:2: the word is empty"),
        ("Ada\tO\nwrote\t\n", r"data.conll:2: the tag is empty"),
        (b"Ada\tO\nZo\xeb\tO\n", r"data.conll:2: not UTF-8 text"),
        ("\n \n", "the file is empty"),
        ("# only\n\n# comments\n", r"data.conll: no sentence in it"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, text: str | bytes, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        read_conll(write(text))


def test_columns_that_are_not_there_are_an_error(write) -> None:
    with pytest.raises(ToolError, match=r"data.conll:1: columns: got 2, at least 4 needed"):
        read_conll(write("Ada\tO\n"), (1, 4))


def test_a_file_that_is_not_there_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="nowhere: cannot be read"):
        read_conll(tmp_path / "nowhere")
