from __future__ import annotations

import contextlib
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config.environment import (
    GIB,
    VARIABLES,
    Environment,
    clamp_kv_cache_space,
    lookup,
    parse_binding,
    parse_size,
    read_environment,
    show_bytes,
    show_cpus,
)
from octavo.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("512MB", 1, 512 << 20),
        ("512 mib", GIB, 512 << 20),
        ("40GB", 1, 40 * GIB),
        ("2GiB", 1, 2 * GIB),
        ("1.5g", 1, 3 * GIB // 2),
        ("0.5", GIB, GIB // 2),
        (".5", GIB, GIB // 2),
        ("40", GIB, 40 * GIB),
        ("4096", 1, 4096),
        ("9007199254740993", 1, 9007199254740993),
        ("100b", GIB, 100),
        ("1T", 1, 1024 * GIB),
        ("0", GIB, 0),
    ],
)
def test_sizes(text: str, unit: int, size: int) -> None:
    assert parse_size(text, unit) == size


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e3", "nan", "inf", "4 4", "1kk", "GB", "1.2.3", "9" * 30, "1" * 19 + "T", "٣"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert 0 <= parse_size(text, GIB) < 1 << 63


def test_an_empty_environment_is_the_defaults() -> None:
    assert read_environment({}) == Environment()
    assert (
        read_environment({"VLLM_API_KEY": "", "VLLM_TARGET_DEVICE": "cpu", "VLLM_USE_V1": "0"})
        == Environment()
    )


def test_every_row_fills_a_field_once() -> None:
    fields = [variable.field for variable in VARIABLES]
    assert sorted(fields) == sorted(Environment.__struct_fields__)
    names = [name for variable in VARIABLES for name in variable.names]
    assert len(names) == len(set(names))


def test_vllm_names_and_octavos_win() -> None:
    environ = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "OMP_NUM_THREADS": "16,2",
        "VLLM_USE_MODELSCOPE": "True",
        "VLLM_LOG_STATS_INTERVAL": "2.5",
        "VLLM_LOGGING_LEVEL": "debug",
        "VLLM_MAX_STOP_STRINGS": "8",
        "VLLM_API_KEY": "vllm",
        "OCTAVO_API_KEY": "octavo",
    }
    got = read_environment(environ)
    assert got.kv_cache_space_bytes == 4 * GIB
    assert got.threads == 16
    assert got.use_modelscope is True
    assert got.log_stats_interval_s == 2.5
    assert got.logging_level == "DEBUG"
    assert got.max_stop_strings == 8
    assert got.api_key == "octavo"
    assert lookup("api_key", environ) == ("OCTAVO_API_KEY", "octavo")
    assert read_environment({"VLLM_CPU_KVCACHE_SPACE": "0"}).kv_cache_space_bytes is None
    assert read_environment({"VLLM_LOG_STATS_INTERVAL": "0"}).log_stats_interval_s == 10
    assert read_environment({"OCTAVO_NUM_THREADS": "3", "OMP_NUM_THREADS": "9"}).threads == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", "lots"),
        ("OMP_NUM_THREADS", "0"),
        ("OCTAVO_USE_MODELSCOPE", "perhaps"),
        ("VLLM_LOG_STATS_INTERVAL", "nan"),
        ("VLLM_MAX_STOP_STRINGS", "-1"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{text}"):
        read_environment({name: text})


def test_the_cache_is_clamped_with_the_unit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    environ = {"VLLM_CPU_KVCACHE_SPACE": "40"}
    assert clamp_kv_cache_space(40 * GIB, 50 * GIB, environ) == 40 * GIB
    assert not caplog.records
    assert clamp_kv_cache_space(40 * GIB, 3 * GIB, environ) == 3 * GIB
    (record,) = caplog.records
    assert record.getMessage() == (
        "VLLM_CPU_KVCACHE_SPACE=40 asks for 40 GiB (the unit is GiB; for megabytes write 40MB), "
        "but 3 GiB are free: using at most that."
    )


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("0-3", [{0, 1, 2, 3}]),
        ("0,2,4", [{0, 2, 4}]),
        (" 0-1 | 2,4-5 ", [{0, 1}, {2, 4, 5}]),
        ("all", [set(range(6))]),
        ("7-9,5", [{5}]),
    ],
)
def test_bindings(text: str, ranks: list[set[int]]) -> None:
    got = parse_binding(text, range(6))
    assert got.mode == "cpus"
    assert [set(rank) for rank in got.ranks] == ranks


def test_bindings_outside_the_mask_warn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert parse_binding("auto", {0}).mode == "auto"
    assert parse_binding("NoBind", {0}).mode == "nobind"
    assert not caplog.records
    assert parse_binding("0-15", {0, 1}).ranks == (frozenset({0, 1}),)
    assert "CPUs 2-15" in caplog.records[0].getMessage()
    assert parse_binding("0|8", {0, 1}).mode == "auto"
    assert "without CPUs" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("text", ["", "x", "3-1", "0-", "-1", "0,,1", "0|", "0-99999999", "0-999999"])
def test_what_is_no_binding(text: str) -> None:
    with pytest.raises(ConfigError, match="0-15"):
        parse_binding(text, {0})


def test_shown_for_people() -> None:
    assert show_cpus([3, 1, 2, 8]) == "1-3,8"
    assert show_cpus([]) == "none"
    assert (show_bytes(GIB * 3 // 2), show_bytes(512 << 20), show_bytes(7)) == (
        "1.5 GiB",
        "512 MiB",
        "7 bytes",
    )
