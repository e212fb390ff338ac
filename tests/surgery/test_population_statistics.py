"""The statistics of shards: saved, loaded and merged to the same bits, and refused where they do not fit."""

import itertools
import json

import numpy as np
import pytest

from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery.population_statistics import PopulationStatistics, merge

LEVELS = (("block/bn1",), ("bn2", "bn3"))


def moments(batches):
    result = PopulationMoments(3)
    for batch in batches:
        result.update(batch)
    return result


def shard(i, count=4, level=0, batches=None, **changes):
    random = np.random.default_rng(i)
    batches = [random.normal(100, 1e-3, (7 + i, 3))] if batches is None else batches
    values = {
        "moments": {path: moments(batches) for path in LEVELS[level]},
        "estimator": "sequential",
        "levels": LEVELS,
        "level": level,
        "shards": (count, frozenset([i])),
        "fingerprint": "a",
        "paths": ("block/bn1", "bn2", "bn3"),
    }
    return PopulationStatistics(**(values | changes))


def bits(statistics):
    return {
        path: (each.count, each.mean.tobytes(), each.variance.tobytes(), each.unbiased_variance.tobytes())
        for path, each in statistics.moments.items()
    }


def test_shards_merge_to_the_bits_of_one_pass_in_every_order():
    random = np.random.default_rng(0)
    batches = [random.normal(50, 0.01, (size, 3)).astype("float32") for size in (32, 32, 32, 32, 32, 5)]
    whole = shard(0, 1, batches=batches)
    parts = [shard(i, 3, batches=batches[i::3]) for i in range(3)]
    for order in itertools.permutations(parts):
        assert bits(merge(order)) == bits(whole)


def test_merged_shards_merge_again():
    parts = [shard(i) for i in range(4)]
    tree = merge([merge(parts[:2]), merge(parts[2:])])
    assert bits(tree) == bits(merge(parts))
    assert tree.missing_shards == ()


def test_layers_of_two_copies_are_paired_by_position():
    """Names that a layer of one's own gives the layers inside it are counted on in every copy."""
    paths = ("block/bn1_1", "bn2", "bn3_7")
    names = dict(zip(("block/bn1", "bn2", "bn3"), paths, strict=True))
    renamed = shard(
        1,
        level=1,
        paths=paths,
        levels=tuple(tuple(names[path] for path in level) for level in LEVELS),
        moments={names[path]: each for path, each in shard(1, level=1).moments.items()},
    )
    merged = merge([shard(0, level=1), renamed])
    assert bits(merged) == bits(merge([shard(0, level=1), shard(1, level=1)]))


def test_merging_changes_none_of_the_parts():
    parts = [shard(i) for i in range(2)]
    before = [bits(part) for part in parts]
    merge(parts)
    assert [bits(part) for part in parts] == before


def test_a_file_round_trips(tmp_path):
    part = shard(2)
    part.save(tmp_path / "part.stats")
    loaded = PopulationStatistics.load(tmp_path / "part.stats")
    assert bits(loaded) == bits(part)
    assert (loaded.levels, loaded.shards, loaded.fingerprint) == (part.levels, part.shards, part.fingerprint)
    assert [path.name for path in tmp_path.iterdir()] == ["part.stats"]
    assert bits(merge([tmp_path / "part.stats", shard(0)])) == bits(merge([part, shard(0)]))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (shard(0), "Shard 0 of 4 is in both"),
        (shard(1, count=5), "cut into 4 shards and into 5"),
        (shard(1, fingerprint="b"), "weights of the model differ"),
        (shard(1, estimator="batch"), "different estimators"),
        (shard(1, levels=(("block/bn1",),)), "different models"),
        (shard(1, level=1), "are of levels 0 and 1"),
        (shard(1, paths=("block/bn1", "bn2")), "different models, one of 2 and one of 3 BN layers"),
    ],
)
def test_what_does_not_belong_together_is_refused(other, words, tmp_path):
    with pytest.raises(KerasBNError, match=words):
        merge([shard(0), other])
    other.save(tmp_path / "other.stats")
    with pytest.raises(KerasBNError, match=r"other\.stats"):
        merge([shard(0), tmp_path / "other.stats"])


def test_a_later_level_keeps_the_earlier_ones_once():
    first = merge([shard(i) for i in range(4)])
    second = [shard(i, level=1) for i in range(4)]
    second = [
        PopulationStatistics(**{**vars(each), "moments": {**first.moments, **each.moments}})
        for each in second
    ]
    merged = merge(second)
    assert merged.moments["block/bn1"].count == first.moments["block/bn1"].count
    assert merged.remaining_levels == 0
    other = PopulationStatistics(
        **{**vars(second[1]), "moments": {**second[1].moments, "block/bn1": moments([np.ones((2, 3))])}}
    )
    with pytest.raises(KerasBNError, match="'block/bn1', of an earlier level, differ"):
        merge([second[0], other])


def test_missing_shards_are_named():
    with pytest.raises(KerasBNError, match=r"Shards 1, 3 of 4 are missing"):
        merge([shard(0), shard(2)]).check_complete()


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_file_that_is_no_statistics_is_named(tmp_path, content):
    path = tmp_path / "part.stats"
    if content is None:
        with path.open("wb") as file:
            np.savez(file, x=np.ones(2))
    else:
        path.write_bytes(content)
    with pytest.raises(KerasBNError, match=r"part\.stats is not a file of population statistics"):
        PopulationStatistics.load(path)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7])
def test_a_damaged_file_is_refused(tmp_path, place):
    path = tmp_path / "part.stats"
    shard(0).save(path)
    whole = bytearray(path.read_bytes())
    for i in range(20):
        whole[int(place * len(whole)) + i] ^= 255
    path.write_bytes(whole)
    with pytest.raises(KerasBNError, match=r"part\.stats"):
        PopulationStatistics.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "has format 0, and this version of keras_bn reads format 1 only"),
        ({"format": 2}, "has format 2, and this version"),
        ({"kind": "another"}, "is not a file of population statistics"),
        ({"shards": [4]}, "is not a file of population statistics"),
        ({"layers": ["bn2", "bn3", "bn4"]}, "is not a file of population statistics"),
    ],
)
def test_a_header_of_another_version_or_kind_is_refused(tmp_path, change, message):
    path = tmp_path / "part.stats"
    shard(0).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | change
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(KerasBNError, match=f"part.stats {message}"):
        PopulationStatistics.load(path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = tmp_path / "part.stats"
    shard(0).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(KerasBNError, match=r"part\.stats is not a file of population statistics"):
        PopulationStatistics.load(path)


def test_nothing_to_merge_is_an_error():
    with pytest.raises(KerasBNError, match="no statistics to merge"):
        merge([])
