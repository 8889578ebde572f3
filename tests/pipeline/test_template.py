"""Chat templates render as transformers does, take what clients send, and stay inside their limits."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import BadRequest, ConfigError
from octavo.pipeline.template import ChatTemplate, content_format, load_template
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.job import ChatOptions

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}{% for part in m.content %}"
    "{{ part.type }}:{{ part.text }};{% endfor %}{% endfor %}"
)
NEST = "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"


def options(context: dict[str, Any]) -> tuple[list[dict[str, Any]], ChatOptions, dict[str, str]]:
    """A test context as messages, options and special tokens."""
    rest = dict(context)
    messages = rest.pop("messages")
    tools, documents = rest.pop("tools", None), rest.pop("documents", None)
    prompt = bool(rest.pop("add_generation_prompt", False))
    tokens = {key: rest.pop(key) for key in list(rest) if key.endswith("_token")}
    chat = ChatOptions(
        tools=tuple(tools) if tools is not None else None,
        documents=tuple(documents) if documents is not None else None,
        kwargs=rest,
        add_generation_prompt=prompt,
    )
    return messages, chat, tokens


def render(source: str, *messages: dict[str, Any], **kwargs: Any) -> str:
    return ChatTemplate(source).render(messages, ChatOptions(**kwargs), {"bos_token": "<s>"})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_golden_renderings(shared: Path) -> None:
    folder = shared / "data" / "chat_templates"
    contexts = json.loads((folder / "golden_contexts.json").read_text(encoding="utf-8"))
    for line in (folder / "golden_renderings.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        context = {**contexts["defaults"], **contexts["cases"][case["case"]]}
        template = ChatTemplate((folder / "files" / case["template"]).read_text(encoding="utf-8"))
        for method in (template.render, template.render_plain):
            where = f"{case['template']} {case['case']} {method.__name__}"
            if "expected" in case:
                assert method(*options(context)) == case["expected"], where
            else:
                with pytest.raises(BadRequest) as caught:
                    method(*options(context))
                assert type(caught.value.__cause__).__name__ == case["error"], where
                assert str(caught.value.__cause__) == case["message"], where


def test_known_renderings(shared: Path) -> None:
    file = shared / "data" / "chat_templates" / "known_renderings.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        template = ChatTemplate(case["template"])
        assert template.render(*options(case["context"])) == case["expected"], case["name"]
        assert template.render_plain(*options(case["context"])) == case["expected"], case["name"]


def test_chat_tokens(shared: Path) -> None:
    tokenizers: dict[str, Tokenizer] = {}
    file = shared / "data" / "tokenizers" / "expected" / "chat_tokens.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        folder = shared / "data" / "tokenizers" / case["tokenizer"]
        if case["tokenizer"] not in tokenizers:
            tokenizers[case["tokenizer"]] = Tokenizer.load(folder)
        tokenizer = tokenizers[case["tokenizer"]]
        template = load_template(folder, tokenizer)
        assert template is not None
        messages, chat, _ = options({"messages": case["messages"], **case["options"]})
        text = template.render(messages, chat, tokenizer.special_tokens_map)
        assert text == case["text"]
        assert tokenizer.encode(text, add_special_tokens=False) == case["ids"]


def test_every_template_file_has_the_format_that_it_is_written_for(shared: Path) -> None:
    files = shared / "data" / "chat_templates" / "files"
    parts = {
        p.name for p in files.glob("*.jinja") if content_format(p.read_text(encoding="utf-8")) == "openai"
    }
    assert "lc-mistralai-Ministral-3-14B-Reasoning-2512.jinja" in parts
    assert "lc-Qwen-Qwen2.5-7B-Instruct.jinja" not in parts
    assert "vllm-template_chatml.jinja" not in parts


def test_transformers_extras() -> None:
    assert render("{{ tools | tojson }}", user("x"), tools=({"é": "<a>"},)) == '[{"é": "<a>"}]'
    assert render("{{ [1, 2] | tojson(indent=1) }}", user("x")) == "[\n 1,\n 2\n]"
    assert (
        render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", user("x"))
        == '{"a":2,"b":1}'
    )
    assert render("{{ strftime_now('%Y') }}", user("x")) == time.strftime("%Y")
    assert (
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", user("x"))
        == "01"
    )
    assert render("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c", user("x")) == "abxc"
    assert render("{{ range(3) | join('-') }}{{ ','.join(['a', 'b']) }}", user("x")) == "0-1-2a,b"
    assert render("{{ messages | map(attribute='role') | join('+') }}", user("x"), user("y")) == "user+user"
    assert render("{{ dict(a=1).a }}{{ bos_token }}", user("x")) == "1<s>"
    with pytest.raises(BadRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", user("x"))


def test_content_parts_are_flattened_for_string_templates() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c", {"text": "d"}]
    assert render("{{ messages[0]['content'] }}", user(parts)) == "a\nb\nc\nd"
    assert render("{{ messages[0]['content'] }}", {"role": "system", "content": parts[:1]}) == "a"


def test_templates_that_loop_over_parts_get_parts() -> None:
    assert content_format(PARTS) == "openai"
    assert content_format(CHATML) == "string"
    assert content_format("{% set c = messages[0]['content'] %}{% for p in c %}{% endfor %}") == "openai"
    assert content_format("{% for w in m.content.split('x') %}{% endfor %}") == "string"
    assert render(PARTS, user([{"type": "input_text", "text": "a"}, "b"])) == "text:a;text:b;"
    assert render(PARTS, user("hi")) == "text:hi;", "a template that knows parts only gets text as a part"
    both = "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}" + PARTS + "{% endif %}"
    assert render(both, user("hi")) == "hi"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "http://x/y.png"}}, "text only"),
        ({"type": "input_audio", "input_audio": {}}, "text only"),
        ({"image_url": "http://x"}, "text only"),
        ({"type": "hologram"}, "unknown type"),
        ({"type": "text"}, "no text"),
        (5, "string or an object"),
    ],
)
def test_parts_that_cannot_be_read(part: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        render(CHATML, user([part]))
    assert caught.value.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "bad", [{"content": "x"}, {"role": 5, "content": "x"}, "text", user(5), user({"a": 1})]
)
def test_malformed_messages(bad: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        render(CHATML, bad)
    assert str(caught.value.param).startswith("messages[0]")


def test_no_messages() -> None:
    with pytest.raises(BadRequest, match="no messages"):
        render(CHATML)


def test_content_none_is_empty_unless_the_template_asks() -> None:
    assert render("[{{ messages[0].content }}]", {"role": "assistant", "content": None}) == "[]"
    assert render("{{ messages[0].content is none }}", {"role": "assistant", "content": None}) == "True"


def test_tool_call_arguments_are_objects_or_text_as_the_template_wants() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert render("{{ messages[0].tool_calls[0].function.arguments.a }}", message) == "1"
    assert render("{{ 'x' + messages[0].tool_calls[0].function.arguments }}", message) == 'x{"a": 1}'
    for broken in ('{"a', "[" * 100_000):
        cut = {**message, "tool_calls": [{"function": {"name": "f", "arguments": broken}}]}
        assert render("{{ messages[0].tool_calls[0].function.arguments }}", cut) == broken
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}, "the client's message is not touched"


def test_reasoning_has_all_names() -> None:
    message = {"role": "assistant", "content": "x", "reasoning": "because"}
    assert (
        render("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", message) == "becausebecause"
    )


@pytest.mark.parametrize(
    "name", ["messages", "tools", "raise_exception", "namespace", "add_generation_prompt"]
)
def test_kwargs_cannot_shadow_internals(name: str) -> None:
    with pytest.raises(BadRequest, match=name) as caught:
        render(CHATML, user("x"), kwargs={name: "evil"})
    assert caught.value.param == "chat_template_kwargs"


def test_kwargs_reach_the_template() -> None:
    assert render("{{ enable_thinking }}", user("x"), kwargs={"enable_thinking": False}) == "False"


@pytest.mark.parametrize("content", ["The sky", "The sky ", [{"type": "text", "text": "The sky"}]])
@pytest.mark.parametrize("source", [CHATML, CHATML.replace("m['content']", "m['content'] | trim")])
def test_continue_final_message_as_transformers(content: Any, source: str) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    flat = content if isinstance(content, str) else content[0]["text"]
    messages = [user("Why?"), {"role": "assistant", "content": flat}]
    theirs, _ = transformers.render_jinja_template(
        conversations=[messages], chat_template=source, continue_final_message=True
    )
    sent = [user("Why?"), {"role": "assistant", "content": content}]
    ours = render(source, *sent, continue_final_message=True, add_generation_prompt=False)
    assert ours == theirs[0]
    assert ours.endswith("sky") or ours.endswith("sky ")


def test_continue_final_message_errors() -> None:
    with pytest.raises(BadRequest, match="exclude each other"):
        render(CHATML, user("x"), continue_final_message=True)
    with pytest.raises(BadRequest, match="no text to continue"):
        render(PARTS, user([]), continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(BadRequest, match="does not write"):
        render(
            "{{ messages[0].content[:2] }}",
            user("long"),
            continue_final_message=True,
            add_generation_prompt=False,
        )


def test_objects_of_other_kinds_are_inert() -> None:
    class Evil:
        def go(self) -> str:
            return "gone"

    message = {"role": "user", "content": "x", "extra": Evil()}
    assert render("{{ messages[0].extra }}", message) == "<Evil>"


def test_sources_of_a_template(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    assert load_template(tmp_path, None) is None
    from_config = load_template(tmp_path, byte_tokenizer)
    assert from_config is not None
    assert from_config.source == byte_tokenizer.config["chat_template"]
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json {{ messages|length }}"}')
    assert source(tmp_path, byte_tokenizer) == "json {{ messages|length }}"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages|length }}")
    assert source(tmp_path, byte_tokenizer) == "file {{ messages|length }}"
    assert source(tmp_path, byte_tokenizer, "literal {{ messages }}") == "literal {{ messages }}"
    assert source(None, None, str(tmp_path / "chat_template.json")) == "json {{ messages|length }}"
    assert source(None, None, str(tmp_path / "chat_template.jinja")) == "file {{ messages|length }}"
    for literal in ("{{ messages }}" * 99, "{{ 'a/b' }}\n"):
        assert source(None, None, literal) == literal
    for missing in ("missing.jinja", "~nobody-here/a.jinja", "x" * 999, "a\0b"):
        with pytest.raises(ConfigError, match="no such file"):
            load_template(tmp_path, None, missing)
    with pytest.raises(ConfigError, match="not valid Jinja"):
        load_template(None, None, "{% for %}")
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    broken = load_template(tmp_path)
    assert broken is not None
    with pytest.raises(BadRequest, match="not valid Jinja"):
        broken.render([user("x")], ChatOptions(), {})


def source(folder: Path | None, tokenizer: Tokenizer | None, given: str | None = None) -> str:
    template = load_template(folder, tokenizer, given)
    assert template is not None
    return template.source


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    template = load_template(tmp_path)
    assert template is not None
    assert template.render([user("x")], ChatOptions(), {}) == "plain"
    assert template.render([user("x")], ChatOptions(tools=({"type": "function"},)), {}) == "with tools"


def test_the_time_of_a_rendering() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(BadRequest, match=r"more than 0\.01 s"):
        ChatTemplate(loops, seconds=0.01).render([user("x")], ChatOptions(), {})


ATTACKS = [
    "{% set n = namespace(l=[]) %}{% for i in range(900) %}{% set n.l = n.l + ['x' * 9999999] %}{% endfor %}",
    "{{ [0] * 9000000 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ '%1000000000d' % 3 }}",
    "{{ '%*d' % (1000000000, 3) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 1000000000) }}",
    "{{ 'a' | replace('', 'b' * 1000000) | replace('b', 'c' * 1000) }}",
    "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
    NEST + "{{ ns.s }}",
    NEST + "{{ ns.s | tojson }}",
    "{{ '%999999999d' | format(3) }}",
    "{{ range(9999) | join('a' * 100000) }}",
    "{{ range(9999) | map('string') | join('a' * 100000) }}",
    "{{ ('a' * 100000).join(range(9999) | map('string')) }}",
    "{{ ('\\n' * 10000) | indent('a' * 100000) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ range(1000000000) | list }}",
    "{{ range(9) | slice(99999999) | list }}",
    "{{ 1 | tojson(indent=1000000000) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% for m in [1] %}{{ m.__class__.__base__.__subclasses__() }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% include '/etc/passwd' %}",
    "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_quickly(attack: str) -> None:
    begun = time.thread_time()
    with pytest.raises(BadRequest):
        render(attack, user("x"))
    assert time.thread_time() - begun < 3.0


def test_limits_are_per_rendering_and_per_thread() -> None:
    template = ChatTemplate("{% for i in range(50000) %}{% endfor %}{{ messages[0].content }}")
    results: list[str] = []

    def work(name: str) -> None:
        for _ in range(3):
            results.append(template.render([user(name)], ChatOptions(), {}))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["a"] * 3 + ["b"] * 3


def test_a_caller_cannot_grow_the_cache_of_templates() -> None:
    from octavo.pipeline.template import _compiled

    for i in range(40):
        ChatTemplate(f"{i}")
    assert _compiled.cache_info().currsize <= 16
    with pytest.raises(BadRequest, match="limit"):
        ChatTemplate("x" * 1_000_001)
