"""Flags and environment together, for engine and server."""

from __future__ import annotations

import os

import pytest

from octavo.cli.serve import server_settings
from octavo.config import machine
from octavo.config.engine import EngineConfig
from octavo.config.environment import read_environment
from octavo.config.flags import Table, parse, resolve
from octavo.config.start import engine_config


def config_of(line: str, environ: dict[str, str]) -> EngineConfig:
    return engine_config(resolve(parse(line.split(), Table()).given), environ)


def test_the_bundled_model_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("--enforce-eager", {})
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("--enforce-eager: accepted;")
    assert err[1].startswith("No model named: the bundled pocket model answers")
    assert len(err) == 2
    assert config.model is None


def test_home_is_expanded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert config_of("--model ~/m", {}).model == "/home/me/m"
    assert capsys.readouterr().err == ""


def test_kv_cache_space_counts_gib_and_flags_win() -> None:
    assert config_of("--model m", {"VLLM_CPU_KVCACHE_SPACE": "2"}).kv_cache_memory_bytes == 2 << 30
    both = config_of("--model m --kv-cache-memory 1GiB", {"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert both.kv_cache_memory_bytes == 1 << 30


def test_threads_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    assert config_of("--model m", {"OMP_NUM_THREADS": "3"}).threads == 3
    assert config_of("--model m", {"OMP_NUM_THREADS": "64"}).threads == 8
    assert config_of("--model m --threads 5", {"OMP_NUM_THREADS": "3"}).threads == 5
    assert config_of("--model m", {"VLLM_CPU_NUM_OF_RESERVED_CPU": "2"}).threads == 6


def test_decode_and_prefill_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    environ = {"OCTAVO_NUM_THREADS": "6", "OCTAVO_DECODE_THREADS": "4", "OCTAVO_PREFILL_THREADS": "99"}
    config = config_of("--model m", environ)
    assert (config.threads, config.decode_threads, config.prefill_threads) == (6, 4, 8)
    flags = config_of("--model m --decode-threads 3 --prefill-threads 16", environ)
    assert (flags.decode_threads, flags.prefill_threads) == (3, 16)
    assert config_of("--model m", {}).decode_threads is None


def test_binding_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[frozenset[int]] = []
    monkeypatch.setattr(machine, "affinity", lambda: frozenset(range(4)))
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, cpus: bound.append(frozenset(cpus)), raising=False
    )
    assert config_of("--model m", {"VLLM_CPU_OMP_THREADS_BIND": "1-2"}).threads == 2
    assert bound == [frozenset({1, 2})]
    monkeypatch.setattr(machine, "core_speed", lambda cpu, root: cpu)
    given = {"VLLM_CPU_OMP_THREADS_BIND": "0-2", "OMP_NUM_THREADS": "1"}
    assert config_of("--model m", given).threads == 1
    assert bound[1:] == [frozenset({0, 1, 2}), frozenset({2})], "the fastest of those named"


def test_server_settings_from_flags_and_environment() -> None:
    given = resolve(parse(["--api-key", "a", "", "--port", "0"], Table()).given)
    server = server_settings(given, read_environment({"VLLM_API_KEY": "e", "VLLM_MAX_STOP_STRINGS": "9"}))
    assert (server.api_keys, server.port, server.max_stop_strings) == (("a",), 0, 9)
    alone = server_settings(resolve(()), read_environment({"VLLM_API_KEY": "e"}))
    assert alone.api_keys == ("e",)


def test_no_request_may_ask_for_more_than_an_empty_queue_takes() -> None:
    def most(line: str, **environment: str) -> int:
        settings = resolve(parse(line.split(), Table()).given)
        return server_settings(settings, read_environment(environment)).max_sequences

    assert most("") == 1024
    assert most("--max-num-queued-reqs 4096") == 4096
    assert most("--max-num-queued-reqs 99", VLLM_MAX_N_SEQUENCES="100") == 99
    assert most("--max-num-queued-reqs 99999", VLLM_MAX_N_SEQUENCES="100") == 100
