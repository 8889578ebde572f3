"""The table of flags: complete, parsed in every spelling, and clear about what it refuses."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest

from octavo.config.engine import EngineConfig
from octavo.config.flag_names import MULTI_NODE_COUNTS
from octavo.config.flag_rules import RULES, Settings
from octavo.config.flag_table import GROUPS
from octavo.config.flags import Table, from_keywords, parse, read_config_file, resolve
from octavo.errors import ConfigError
from octavo.server.settings import ServerSettings

NAMES = Path(__file__).parent / "data" / "flags.txt"
SHARED = Path(__file__).parents[2].parent / "shared" / "VLLM.md"


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def settings_of(line: str, table: Table) -> Settings:
    return resolve(parse(shlex.split(line), table).given)


def listed() -> list[str]:
    lines = NAMES.read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


@pytest.mark.parametrize("word", listed())
def test_every_flag_of_vllm_parses(word: str, table: Table) -> None:
    if word.endswith("?"):
        name = word[:-1]
        forms = [f"--{name}", f"--no-{name}", f"--{name}=false", f"--{name.replace('-', '_')}"]
    else:
        name, value = word.split("=", 1)
        value = value or "1"
        forms = [f"--{name} {value}", f"--{name}={value}", f"--{name.replace('-', '_')} {value}"]
    for form in forms:
        parsed = parse([*form.split(), "--port", "8001"], table)
        assert [item.flag.name for item in parsed.given][-1] == "port", form
        assert not parsed.positionals, form
        resolve(parsed.given)


AS_IT_IS = {"device=cpu", *(f"{word.split('#')[0]}=" for word in MULTI_NODE_COUNTS.split())}
"""Ask for one of what there is one of."""


@pytest.mark.parametrize("word", listed())
def test_a_flag_has_an_effect_or_says_in_one_line_that_it_has_none(word: str, table: Table) -> None:
    name, equals, value = word.rstrip("?").partition("=")
    settings = settings_of(f"--{name} {value or 1}" if equals else f"--{name}", table)
    effect = bool(settings.engine or settings.server or settings.cli)
    if word in AS_IT_IS:
        assert (effect, settings.notices) == (False, [])
        return
    assert effect != bool(settings.notices)
    assert len(settings.notices) == (not effect)


@pytest.mark.parametrize("word", MULTI_NODE_COUNTS.split())
def test_more_than_one_machine_is_refused(word: str, table: Table) -> None:
    name = word.split("#")[0]
    with pytest.raises(ConfigError, match=f"--{name}: 2 is not possible here"):
        settings_of(f"--{name} 2", table)


def test_names_of_the_reference_page_are_all_known(table: Table) -> None:
    """Every --name of the flag section; a few words there are groups of names, not names."""
    if not SHARED.exists():
        pytest.skip("the reference page is not in this checkout")
    section = SHARED.read_text().split("### 2.8")[1].split("### 2.9")[0]
    names = re.findall(r"--([a-z0-9][a-z0-9_-]*)", section)
    whole = {name for name in names if not name.endswith("-")} - {"numa-bind"}
    missing = sorted(name for name in whole if table.find(name) is None and name != "x")
    assert missing == []


def test_targets_exist(table: Table) -> None:
    for flag in table.flags.values():
        where, _, field = flag.target.partition(".")
        known = {
            "engine": EngineConfig.__struct_fields__,
            "server": ServerSettings.__struct_fields__,
            "rule": tuple(RULES),
            "cli": ("config", "debug"),
            "none": ("",),
            "single": ("",),
        }
        assert field in known[where], flag.name


def test_every_engine_field_has_a_flag(table: Table) -> None:
    reached = {flag.target.partition(".")[2] for flag in table.flags.values()}
    by_rule = {
        "hf_token",
        "load_format",
        "hf_overrides",
        "memory_share",
        "kv_cache_dtype",
        "tensor_parallel_size",
    }
    assert set(EngineConfig.__struct_fields__) <= reached | by_rule


@pytest.mark.parametrize(
    ("line", "engine", "server"),
    [
        ("--model ~/m --port 9000 --host 0.0.0.0", {"model": "~/m"}, {"port": 9000, "host": "0.0.0.0"}),
        ("--max-model-len 32k", {"max_model_len": 32000}, {}),
        ("--max-model-len 32K", {"max_model_len": 32768}, {}),
        ("--max-model-len=auto", {"max_model_len": None}, {}),
        ("--max_model_len -1", {"max_model_len": None}, {}),
        ("--kv-cache-memory 2GiB", {"kv_cache_memory_bytes": 2 << 30}, {}),
        ("--kv-cache-memory-bytes 512MB", {"kv_cache_memory_bytes": 512 << 20}, {}),
        ("--kv_cache_memory_bytes 1048576", {"kv_cache_memory_bytes": 1 << 20}, {}),
        ("--add_bos_token=True", {"add_bos_token": True}, {}),
        ("--add-bos-token False", {"add_bos_token": False}, {}),
        ("--no-loop-guard", {"loop_guard": False}, {}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}, {}),
        ("--no-loop-guard=false", {"loop_guard": True}, {}),
        ("--rope-scaling '{\"rope_type\": \"yarn\"}' --rope-theta 1e6",
         {"hf_overrides": {"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 1e6}}, {}),
        ("--hf-overrides.rope_theta 5 --hf-overrides.a.b x",
         {"hf_overrides": {"rope_theta": 5, "a": {"b": "x"}}}, {}),
        ("--override-generation-config.top_k 5 --override-generation-config.top_p 0.5",
         {"override_generation_config": {"top_k": 5, "top_p": 0.5}}, {}),
        ("--served-model-name gpt-3.5-turbo other", {}, {"served_names": ("gpt-3.5-turbo", "other")}),
        ("--allowed-origins '[\"*\"]'", {}, {"allowed_origins": ("*",)}),
        ("--api-key a b --ssl-cert-reqs 2", {}, {"api_keys": ("a", "b"), "ssl_cert_reqs": 2}),
        ("--gpu-memory-utilization 0.3", {"memory_share": 0.3}, {}),
        ("--default-max-tokens 256 --threads 2 --backend numpy",
         {"default_max_tokens": 256, "threads": 2, "backend": "numpy"}, {}),
        ("--dtype=half --dtype bfloat16", {"dtype": "bfloat16"}, {}),
        ("--chat-template t.json --seed 0", {"chat_template": "t.json", "seed": 0}, {}),
        ("--load-format bitsandbytes", {"load_format": "auto"}, {}),
        ("--hf-token", {}, {}),
    ],
)  # fmt: skip
def test_meanings(line: str, engine: dict[str, object], server: dict[str, object], table: Table) -> None:
    settings = settings_of(line, table)
    assert settings.engine == engine
    assert settings.server == server


STORIES = [
    "--model /data/Qwen/Qwen2.5-1.5B",
    "--model ~/ModelSpace/Qwen2-0.5B --port 8000 --host 0.0.0.0",
    "--model gemma-3-12b-it-fp32 --dtype float32 --gpu-memory-utilization .95 --max-model-len 8192 "
    "--max-num-seqs 1 --enforce-eager --served-model-name gemma-3-12b-it --trust-remote-code",
    "m --chat-template /x/chat_template_fixed.json",
    "m --load-format bitsandbytes --quantization bitsandbytes",
    "m --quantization gptq --add_bos_token=True",
    "m --quantization gptq --tensor-parallel-size 2 --dtype=half --gpu-memory-utilization 0.95",
    "--model X --tensor-parallel-size 4",
    "m --max-model-len 14000 --device cpu",
    "m -q awq -tp 2 -O3 -cc.mode=3 --swap-space 4 --disable-log-requests",
]


@pytest.mark.parametrize("line", STORIES)
def test_command_lines_of_the_stories(line: str, table: Table) -> None:
    settings = settings_of(line, table)
    for notice in settings.notices:
        assert "\n" not in notice
        assert notice.startswith("-")


@pytest.mark.parametrize(
    ("line", "notice"),
    [
        ("--enforce-eager", "--enforce-eager: accepted; Octavo has no graphs to capture."),
        ("--enable_mm_embeds", "--enable_mm_embeds: accepted; this version of Octavo does not have it yet."),
        ("-tp 4", "-tp: 4 reduced to 1: this CPU is one device; its cores share the work (--threads)."),
        ("--device cuda:0", "--device: cuda:0 accepted; this version of Octavo runs on the CPU."),
    ],
)
def test_a_flag_without_effect_says_so_in_one_line(line: str, notice: str, table: Table) -> None:
    assert settings_of(line, table).notices == [notice]


def test_one_notice_however_often_a_flag_is_given(table: Table) -> None:
    assert len(settings_of("-cc.mode 3 -cc.backend x --no-enforce-eager", table).notices) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mm-embed-counts image:256", "Unknown flag --mm-embed-counts. Did you mean --enable-mm-embeds?"),
        ("--max-model-length 5", "Did you mean --max-model-len?"),
        ("--port abc", "--port: 'abc' is not accepted; give a whole number"),
        ("--port", "--port needs a value."),
        ("--port --host x", "--port needs a value."),
        ("--served-model-name --host x", "--served-model-name needs at least one value."),
        ("--dtype int8", "--dtype: 'int8' is not accepted; give one of auto, half"),
        ("--load-format foo", "--load-format: 'foo' is not accepted"),
        ("--hf-overrides {", "--hf-overrides: '{' is not accepted; give a JSON object"),
        ("--seed.x 3", "Unknown flag --seed.x"),
        ("--no-port", "Unknown flag --no-port"),
        ("--enable-prefix-caching=perhaps", "'perhaps' is not accepted; give true or false"),
        ("--gpu-memory-utilization 2", "give a number above 0 and at most 1"),
        ("--memory-share nan", "'nan' is not accepted"),
        ("--kv-cache-memory lots", "--kv-cache-memory: 'lots' is not accepted; give a size such as 2GiB"),
        ("--device toaster", "--device: 'toaster' is not accepted; give auto or cpu"),
        ("--pipeline-parallel-size 2", "--pipeline-parallel-size: 2 is not possible here"),
        ("-dp 4", "-dp: 4 is not possible here"),
        ("--zzzzzz", "Unknown flag --zzzzzz."),
        ("--logits-processors a.b:C d:E", "--logits-processors: a.b:C, d:E cannot be used"),
        ("--port 65536", "--port: '65536' is not accepted; give a number from 0 to 65535."),
        ("--max-num-seqs 0", "--max-num-seqs: '0' is not accepted; give a number from 1."),
        ("--max-num-seqs infk", "--max-num-seqs: 'infk' is not accepted; give a whole number"),
        ("--max-model-len 0", "--max-model-len: '0' is not accepted"),
        ("--kv-cache-memory 0", "--kv-cache-memory: '0' is not accepted"),
        ("--threads=-1", "--threads: '-1' is not accepted"),
    ],
)
def test_what_is_refused(line: str, message: str, table: Table) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_of(line, table)
    assert message in str(refused.value)


def test_positionals_and_the_double_hyphen(table: Table) -> None:
    parsed = parse(["m", "--port", "1", "--", "--not-a-flag"], table)
    assert parsed.positionals == ("m", "--not-a-flag")
    assert parse(["--seed", "-3"], table).given[0].value == "-3"


def test_keywords_of_python(table: Table) -> None:
    settings = from_keywords(
        {"device": "cpu", "max_model_len": 2048, "trust_remote_code": True, "dtype": "bfloat16",
         "enforce_eager": None, "hf_overrides": {"a": 1}, "compilation_config": 3, "tensor_parallel_size": 1},
        table,
    )  # fmt: skip
    assert settings.engine["max_model_len"] == 2048
    assert settings.engine["hf_overrides"] == {"a": 1}
    assert [line.split(":")[0] for line in settings.notices] == ["compilation_config"]
    with pytest.raises(TypeError, match=r"Unknown argument 'max_modell_len'\. Did you mean max_model_len\?"):
        from_keywords({"max_modell_len": 1}, table)
    with pytest.raises(ConfigError, match="logits_processors: Table cannot be used"):
        from_keywords({"logits_processors": [Table]}, table)
    with pytest.raises(ConfigError, match=r"max_model_len: 2\.5 is not accepted"):
        from_keywords({"max_model_len": 2.5}, table)
    for keyword, value in (("max_model_len", math.inf), ("hf_overrides", "[" * 100_000)):
        with pytest.raises(ConfigError, match=f"{keyword}: .* is not accepted"):
            from_keywords({keyword: value}, table)


def test_config_file(tmp_path: Path, table: Table) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: m\nmax_model_len: 32k\nport: 9\nenforce-eager: true\nno-loop-guard: true\n"
        "served-model-name: [a, b]\nhf_overrides:\n  rope_theta: 5.0\napi-key: null\n"
    )
    settings = resolve(read_config_file(str(file), table))
    assert settings.engine == {
        "model": "m", "max_model_len": 32000, "loop_guard": False, "hf_overrides": {"rope_theta": 5.0},
    }  # fmt: skip
    assert settings.server == {"port": 9, "served_names": ("a", "b")}
    assert len(settings.notices) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: x", "unknown key 'modle'. Did you mean model?"),
        ("- a", "must hold keys and values"),
        ("a: [", "is not valid YAML"),
        ("port: x", "'x' is not accepted; give a whole number"),
    ],
)
def test_config_file_errors_name_the_file(text: str, message: str, tmp_path: Path, table: Table) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        resolve(read_config_file(str(file), table))
    assert message in str(refused.value)
    assert "c.yaml" in str(refused.value)


def test_config_file_that_is_not_there(table: Table) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read /nowhere.yaml"):
        read_config_file("/nowhere.yaml", table)


def test_the_page_names_every_flag_that_means_something() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    flags = [flag for _, _, group in GROUPS for flag in group]
    missing = [flag.name for flag in flags if f"`--{flag.name}`" not in page or flag.help not in page]
    assert missing == []


def test_the_defaults_in_the_help_are_those_of_the_code() -> None:
    owners = {"engine": EngineConfig(), "server": ServerSettings()}
    seen = 0
    for flag in (flag for _, _, group in GROUPS for flag in group):
        where, _, field = flag.target.partition(".")
        shown = re.search(r"\(([^() ]+)\)\.$", flag.help)
        if shown and where in owners:
            value = getattr(owners[where], field)
            known = {"on": True, "64MiB": 64 << 20, "30": 30.0, "0.5": 0.5}
            assert value == known.get(shown[1]) or str(value) == shown[1], flag.name
            seen += 1
    assert seen > 10
