"""The text form of the metrics, letter by letter."""

import pytest

from keras_bn_serving.local_server import metrics


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_FAMILIES", {})


def test_a_counter_and_its_labels() -> None:
    counter = metrics.Counter("serving:asked", "model_name", "status")
    assert metrics.exposition() == "# TYPE :tensorflow:serving:asked counter\n"
    counter.add('a"b\\', "OK")
    counter.add('a"b\\', "OK", by=2)
    assert (
        metrics.exposition().splitlines()[1]
        == ':tensorflow:serving:asked{model_name="a\\"b\\\\",status="OK"} 3'
    )


def test_a_counter_without_labels() -> None:
    metrics.Counter("serving:asked").add()
    assert metrics.exposition().splitlines()[1] == ":tensorflow:serving:asked{} 1"


def test_a_histogram_is_cumulative_and_a_limit_belongs_to_the_next_bucket() -> None:
    histogram = metrics.Histogram("serving:took", [10, 18.5, 1.27482e6], "API")
    for value in (1, 10, 18.4, 5e6):
        histogram.observe(value, "predict")
    assert metrics.exposition().splitlines() == [
        "# TYPE :tensorflow:serving:took histogram",
        ':tensorflow:serving:took_bucket{API="predict",le="10"} 1',
        ':tensorflow:serving:took_bucket{API="predict",le="18.5"} 3',
        ':tensorflow:serving:took_bucket{API="predict",le="1.27482e+06"} 3',
        ':tensorflow:serving:took_bucket{API="predict",le="+Inf"} 4',
        ':tensorflow:serving:took_sum{API="predict"} 5.00003e+06',
        ':tensorflow:serving:took_count{API="predict"} 4',
    ]


def test_families_are_sorted_and_only_successes_are_timed() -> None:
    histogram = metrics.Histogram("serving:b", [1])
    metrics.Counter("serving:a")
    with pytest.raises(ZeroDivisionError), metrics.timed(histogram):
        _ = 1 / 0
    assert metrics.exposition().splitlines() == [
        "# TYPE :tensorflow:serving:a counter",
        "# TYPE :tensorflow:serving:b histogram",
    ]
    with metrics.timed(histogram):
        pass
    assert ":tensorflow:serving:b_count{} 1" in metrics.exposition()
