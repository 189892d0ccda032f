"""What objects show in notebooks: the facts of `fastrnn inspect`, without heavy imports, and without a file's HTML."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from ort_models import switched
from pool_models import PACED
from test_model_stream import some, stack

import fastrnn
from fastrnn import tables
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
HOSTILE = "<img src=x onerror=alert(1)>\"'&<script>"
TAGS = {"div", "table", "tr", "th", "td"}


class Reader(HTMLParser):
    """Tags that are opened and closed, their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


def read(shown):
    """The texts of what an object shows, whose HTML has only the tags and attributes of tables."""
    page = Reader(shown._repr_html_())
    assert page.open == []
    assert page.tags <= TAGS
    assert page.attributes <= {"style", "class"}
    assert not re.search(r"(?<!back)(ground-)?color:|background:(?!none)", shown._repr_html_()), "no colour of its own"
    return page.text


def hostile():
    """A model whose every name would run a script."""
    graph = stack("lstm")
    nodes = tuple(replace(node, name=f"{HOSTILE}{node.name}") for node in graph.nodes)
    return Model(graph.replace(nodes=nodes, name=HOSTILE, notes=(HOSTILE,)))


def test_a_model_shows_what_inspect_shows(capsys, tmp_path):
    Model(stack("lstm")).save(tmp_path / "m.fastrnn")
    model = fastrnn.load(tmp_path / "m.fastrnn")
    texts = read(model)
    told = model.describe()
    for label, text in (*told.head, *told.notes):
        assert not label or label in texts
        assert text in texts
    assert texts.count(model.fingerprint) == 1
    assert all(layer.text in texts for layer in model.layers)
    from fastrnn.cli import main

    assert main(["inspect", str(tmp_path / "m.fastrnn")]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for _, text in told.head)
    assert all(text in str(told) for _, text in told.head)
    assert told.as_dict()["fingerprint"] == model.fingerprint
    assert '"fingerprint"' in told.to_json()


def test_a_hostile_name_is_text():
    model = hostile()
    stream, pool = model.stream(), model.pool(2)
    profile = fastrnn.profile(model, seconds=0.05)
    report = fastrnn.verify(model, "reference")
    analysis = fastrnn.analyze(model, steps=20, long_steps=20, seconds=0.1)
    for shown in (model, stream, pool, profile, report, analysis):
        assert any(HOSTILE in text for text in read(shown)), type(shown)
    model.close()
    stream.close()
    pool.close()
    for shown in (model, stream, pool):
        assert any(HOSTILE in text and "closed" in text for text in read(shown))


def test_a_selected_model_shows_its_selectors():
    with fastrnn.load(switched()) as model:
        texts = read(model)
        assert str(model.selectors[0]) in texts
        assert any("selects a branch" in text for text in texts)
    assert "closed" in read(model)[0]


@pytest.mark.parametrize("name", sorted(PACED))
def test_streams_and_pools_of_every_kind_of_model(name):
    model = PACED[name]
    stream, pool = model.stream(4), model.pool(4)
    assert "4" in read(stream)
    for info in model.states:
        assert f"state {info.name}" in read(model.stream()) or info.name == "steps_done"
    pool.open()
    assert any(text.startswith("1 of 4 open") for text in read(pool))


def test_a_pool_shows_what_its_calls_cost():
    pool = Model(stack("lstm")).pool(2)
    slot = pool.open()
    for _ in range(200):
        pool.step([slot], some(1, 5))
    texts = read(pool)
    assert "200, 200 steps of streams" in texts
    assert any("99 of 100 at most" in text for text in texts)


def test_a_report_shows_what_differs():
    model = Model(stack("lstm"))
    report = fastrnn.verify(model, "reference")
    assert "ok" in read(report)
    wrong = replace(report, outputs=tuple(replace(o, ok=False, absolute=np.inf) for o in report.outputs))
    assert "FAIL" in read(wrong)
    assert any("does NOT answer like" in text for text in read(wrong))


def test_long_tables_and_texts_are_cut():
    rows = [(str(i), "x" * 1000) for i in range(100)]
    page = Reader(tables.table(("a", "b"), rows))
    assert "and 60 more" in page.text
    assert max(map(len, page.text)) < 310


@pytest.mark.parametrize("value", [0.44e-6, 12.3e-3, 1.5, 999.6e-6])
def test_times_are_readable(value):
    number, unit = tables.seconds(value).split()
    assert float(number) == pytest.approx(value * {"us": 1e6, "ms": 1e3, "s": 1}[unit], rel=0.005)
    assert tables.seconds(None) == ""


def test_nothing_heavy_is_imported_for_it(tmp_path):
    Model(stack("lstm")).save(tmp_path / "m.fastrnn")
    code = (
        f"import sys, fastrnn; m = fastrnn.load({str(tmp_path / 'm.fastrnn')!r}); m._repr_html_(); "
        "m.stream()._repr_html_(); m.pool(2)._repr_html_(); "
        "print({'matplotlib', 'rich', 'onnx', 'IPython', 'h5py', 'fastrnn.insight', 'fastrnn.cli'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
