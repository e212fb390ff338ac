"""The command line, by TensorFlow's rules."""

import dataclasses

import pytest

from serving.local_server import flags


def test_value_forms() -> None:
    parsed, leftover = flags.parse(
        ["--port=9000", "--enable_batching", "--rest_api_enable_cors_support=TRUE", "--model_name=a=b"]
    )
    assert (parsed.port, parsed.enable_batching, parsed.rest_api_enable_cors_support) == (9000, True, True)
    assert parsed.model_name == "a=b"
    assert leftover == []


def test_last_of_a_repeated_flag_wins() -> None:
    assert flags.parse(["--port=1", "--port=2"])[0].port == 2


@pytest.mark.parametrize(
    "argument", ["-port=1", "port=1", "--port", "--unknown=1", "--unknown", "model", "--model_name"]
)
def test_what_is_no_flag_is_left_over(argument: str) -> None:
    parsed, leftover = flags.parse([argument])
    assert leftover == [argument]
    assert parsed == flags.Flags()


def test_two_dashes_end_the_flags() -> None:
    parsed, leftover = flags.parse(["--port=1", "--", "--port=2"])
    assert parsed.port == 1
    assert leftover == ["--", "--port=2"]


@pytest.mark.parametrize(
    ("argument", "value", "name"),
    [
        ("--port=1 ", "1 ", "port"),
        ("--port=1_0", "1_0", "port"),
        ("--port=1.0", "1.0", "port"),
        ("--port=", "", "port"),
        ("--enable_batching=yes", "yes", "enable_batching"),
        ("--per_process_gpu_memory_fraction=x", "x", "per_process_gpu_memory_fraction"),
    ],
)
def test_a_bad_value_is_named(argument: str, value: str, name: str) -> None:
    with pytest.raises(flags.BadValue) as error:
        flags.parse([argument])
    assert str(error.value) == f"Couldn't interpret value {value} for flag {name}."


def test_integers_wrap_at_their_width() -> None:
    parsed, _ = flags.parse([f"--port={2**32 + 5}", f"--load_retry_interval_micros={2**32 + 5}"])
    assert parsed.port == 5
    assert parsed.load_retry_interval_micros == 2**32 + 5


def test_usage_lists_every_flag_with_its_default() -> None:
    usage = flags.usage("server")
    for field in dataclasses.fields(flags.Flags):
        assert f"\t--{field.name}=" in usage
    assert "\t--port=8500                      \tint32\t" in usage


def test_unsupported_flags_are_named_once_they_are_set() -> None:
    assert flags.Flags().unsupported() == []
    assert flags.parse(["--prefer_tflite_model"])[0].unsupported() == ["prefer_tflite_model"]
