"""The command line, by TensorFlow's rules."""

import dataclasses

import pytest

from keras_bn_serving.local_server import flags


def test_value_forms() -> None:
    parsed, unsupported, leftover = flags.parse(
        ["--port=9000", "--enable_batching", "--rest_api_enable_cors_support=TRUE", "--model_name=a=b"]
    )
    assert (parsed.port, parsed.enable_batching, parsed.rest_api_enable_cors_support) == (9000, True, True)
    assert parsed.model_name == "a=b"
    assert unsupported == leftover == []


def test_last_of_a_repeated_flag_wins() -> None:
    assert flags.parse(["--port=1", "--port=2"])[0].port == 2


@pytest.mark.parametrize(
    "argument", ["-port=1", "port=1", "--port", "--unknown=1", "--unknown", "model", "--model_name", "--"]
)
def test_what_is_no_flag_is_left_over(argument: str) -> None:
    assert flags.parse([argument]) == (flags.Flags(), [], [argument])


@pytest.mark.parametrize(
    ("argument", "value", "name"),
    [
        ("--port=1.0", "1.0", "port"),
        ("--port=", "", "port"),
        ("--enable_batching=yes", "yes", "enable_batching"),
        ("--enable_batching=", "", "enable_batching"),
    ],
)
def test_a_bad_value_is_named(argument: str, value: str, name: str) -> None:
    with pytest.raises(ValueError) as error:
        flags.parse([argument])
    assert str(error.value) == f"Couldn't interpret value {value} for flag {name}."


def test_usage_lists_every_flag_with_its_default() -> None:
    usage = flags.usage("server")
    for field in dataclasses.fields(flags.Flags):
        assert f"--{field.name}=" in usage
    assert "--port=8500" in usage


def test_flags_without_effect_are_accepted_and_unsupported_ones_are_named() -> None:
    arguments = ["--num_load_threads=2", "--enable_profiler", "--prefer_tflite_model"]
    assert flags.parse(arguments) == (flags.Flags(), ["prefer_tflite_model"], [])
