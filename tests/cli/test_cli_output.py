"""What the commands write on terminals, and where they may write files."""

import io
import re
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn import cli
from fastrnn.cli import output
from fastrnn.cli.profile import quantity

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tone_words.onnx"


class TestPlaces:
    """Where a file can't be written is found before the work, and told under the name that was given."""

    @pytest.mark.parametrize("place", ["absent/x", "file/x", "."])
    @pytest.mark.parametrize("what", [["profile", "--report"], ["analyze", "--report"], ["inspect", "--graph"]])
    def test_they_are_checked_first(self, capsys, tmp_path, monkeypatch, what, place):
        pytest.importorskip("matplotlib")
        pytest.importorskip("graphviz")
        (tmp_path / "file").write_text("")
        target = tmp_path / place if place == "." else tmp_path / f"{place}.{'svg' if what[0] == 'inspect' else 'html'}"
        if (place, what[0]) == (".", "inspect"):
            target = tmp_path / "folder.svg"
            target.mkdir()
        for name in ("profile", "analyze"):
            monkeypatch.setitem(vars(fastrnn), name, None)
        assert cli.main([what[0], str(EXAMPLE), what[1], str(target)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {target}: ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestTables:
    ROWS = (("elementwise", "a/long/name/of/a/node", "1.28 k", "2.5 KiB"), ("cell", "b", "29.6 k", "58.4 KiB"))

    def shown(self, monkeypatch, width, **options):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", Terminal())
        output.print_table(
            ("op", "node", "largest change", "size of it"), self.ROWS, ("largest change", "size of it"), **options
        )
        return re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())

    def test_numbers_are_whole_on_a_narrow_terminal_and_names_are_folded(self, monkeypatch):
        text = self.shown(monkeypatch, 45)
        assert max(map(len, text.splitlines())) <= 45
        for number in ("1.28 k", "2.5 KiB", "29.6 k", "58.4 KiB", "elementwise"):
            assert number in text
        assert "largest change" not in text  # its words are below each other
        assert "largest" in text

    def test_spare_columns_go_first_and_a_line_says_so(self, monkeypatch):
        text = self.shown(monkeypatch, 36, spare=("size of it", "largest change"))
        assert "left out on this narrow terminal: size of it\n" in text
        assert "58.4" not in text
        assert "29.6 k" in text

    def test_where_there_is_room_nothing_goes(self, monkeypatch):
        text = self.shown(monkeypatch, 80, spare=("size of it",))
        assert "left out" not in text
        assert "largest change" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5, "5 "),
        (336, "336 "),
        (999.6, "1 k"),
        (1234, "1.23 k"),
        (999_499, "999 k"),
        (999_600, "1 M"),
        (3e15, "3000 T"),
    ],
)
def test_quantities_keep_to_three_digits(number, text):
    assert quantity(number) == text
