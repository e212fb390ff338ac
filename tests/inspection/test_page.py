"""The page: one well-formed file that shows what the report says and loads nothing."""

import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_bn
from keras_bn.inspection.charts import band, histogram, profile, round_ticks, stems

L = keras.layers
VOID = {"meta", "link", "br", "img", "line", "rect", "polygon", "polyline"}


class Checker(HTMLParser):
    """Collects text and tags, and fails on a tag that is not closed where it should be."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report():
    keras.utils.set_random_seed(0)
    layers = [L.Conv1D(200, 3), L.BatchNormalization(name="wide"), L.ReLU(), L.Conv1D(1, 1)]
    model = keras.Sequential([keras.Input((8, 3)), *layers, L.BatchNormalization(name="one")], name="a-b>c")
    data = np.random.default_rng(0).normal(size=(16, 8, 3))
    return keras_bn.inspect(model, data, progress=False)


def test_it_is_well_formed_and_names_every_layer(report):
    found = Checker(report.to_html())
    text = " ".join(found.text)
    assert "Batch normalization in a-b>c" in text
    for words in ("wide", "one", "not healthy", "statistics never updated", "into conv1d"):
        assert words in text
    # Two charts of drift; per layer two of percentiles, two of statistics, gamma and beta.
    assert sum(tag == "svg" for tag, _ in found.tags) == 2 + 2 * 6


def test_it_needs_nothing_but_itself(report):
    html = report.to_html()
    assert not re.search(r"https?:|<script|@import|url\(", html)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in Checker(html).tags)


def test_without_data():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization()])
    found = Checker(keras_bn.inspect(model).to_html())
    assert sum(tag == "svg" for tag, _ in found.tags) == 2
    assert "Statistics against the data" not in " ".join(found.text)


numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers, min_size=1, max_size=300))
def test_charts_stay_inside_their_frames(values):
    values = np.array(values)
    pictures = [
        histogram("", values),
        stems("", values, 1.0),
        band("", np.sort(np.stack([values, values + 1, values + 2]), axis=0)),
        profile("", ["a", "b"], [np.abs(values), np.zeros(3)], (0, 0.5)),
    ]
    for picture in pictures:
        tags = Checker(picture).tags
        _, _, width, height = map(float, tags[0][1]["viewbox"].split())
        for _, attributes in tags:
            points = [map(float, point.split(",")) for point in attributes.get("points", "").split()]
            xs = [float(attributes[name]) for name in ("x", "x1", "x2") if name in attributes]
            ys = [float(attributes[name]) for name in ("y", "y1", "y2") if name in attributes]
            for x, y in points:
                xs.append(x)
                ys.append(y)
            assert all(0 <= x <= width for x in xs) and all(0 <= y <= height for y in ys)


@given(numbers, numbers)
def test_ticks_cover_their_range_and_are_few(a, b):
    low, high = min(a, b), max(a, b)
    ticks = round_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 7 and np.all(np.diff(ticks) > 0)


def test_weights_that_are_not_finite_leave_a_page():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(name="bn")])
    model.layers[0].gamma.assign(np.full(3, np.nan))
    assert "NaN or infinity in gamma" in " ".join(Checker(keras_bn.inspect(model).to_html()).text)
