"""LLM over the real text side and a scripted engine; a few runs on the bundled model."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import ScriptedEngine, llm_of, params, preparer_of

from octavo.errors import BadRequest, OctavoError, PromptTooLong, Unavailable
from octavo.pipeline.prepare import Preparer
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.sampling import RequestOutputKind

ROOT = Path(__file__).parents[2]


def test_one_prompt_gives_a_list_of_one(engine: ScriptedEngine, preparer: Preparer, text: list[int]) -> None:
    (out,) = llm_of(engine, preparer).generate("Hello", params(len(text)))
    assert out.prompt == "Hello"
    assert out.prompt_token_ids == list(engine.requests[0].prompt)
    assert out.finished
    assert out.num_cached_tokens == 2
    (answer,) = out.outputs
    assert answer.text == " the sky is blue"
    assert answer.token_ids == text
    assert (answer.finish_reason, answer.stop_reason) == ("length", None)
    assert answer.logprobs is None
    assert answer.cumulative_logprob is None
    assert out.metrics is not None
    assert out.metrics.finished_time is not None


def test_every_shape_of_prompt(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer)
    ids = preparer.encode_text("Hello", True)
    shapes: list[Any] = [
        "Hello", list(ids), tuple(ids), {"prompt": "Hello"}, {"prompt_token_ids": list(ids)},
        {"prompt": "Hello", "prompt_token_ids": list(ids), "cache_salt": "s"},
    ]  # fmt: skip
    for shape in shapes:
        (out,) = llm.generate(shape, params(1))
        assert out.prompt_token_ids == list(ids)
    assert engine.requests[-1].salt == "s"
    outs = llm.generate(shapes, params(1))
    assert [out.prompt_token_ids for out in outs] == [list(ids)] * len(shapes)
    assert llm.generate(prompt_token_ids=[list(ids), [1, 2]], sampling_params=params(1))[
        1
    ].prompt_token_ids == [1, 2]
    assert llm.generate(prompt_token_ids=list(ids), sampling_params=params(1))[0].prompt is None
    assert llm.generate([], params(1)) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "There is no prompt"),
        (b"x", "not bytes"),
        (["ok", ""], "Prompt 1: "),
        (["ok", []], "Prompt 1 is empty"),
        (["ok", 5], "Prompt 1 is a int"),
        ([{"multi_modal_data": {"image": 1}, "prompt": "x"}], "multi_modal_data"),
        ([{"text": "x"}], "has the key 'text'"),
        ([{}], "without prompt"),
        ([[1, "x"]], "not a token id"),
        ([[10**6]], "out of vocabulary"),
    ],
)
def test_a_bad_prompt_raises_before_anything_runs(
    prompts: Any, message: str, engine: ScriptedEngine, preparer: Preparer
) -> None:
    with pytest.raises(BadRequest, match=message):
        llm_of(engine, preparer).generate(prompts, params(2))
    assert engine.requests == []


def test_a_prompt_that_is_too_long(engine: ScriptedEngine, preparer: Preparer) -> None:
    with pytest.raises(PromptTooLong, match="300 tokens"):
        llm_of(engine, preparer).generate(["a", [7] * 300])
    assert engine.requests == []


def test_results_stay_in_order_whatever_ends_first(engine: ScriptedEngine, preparer: Preparer) -> None:
    engine.room = 2
    counts = [5, 1, 4, 2, 3]
    outs = llm_of(engine, preparer).generate([[9, i] for i in range(5)], [params(c) for c in counts])
    assert [out.prompt_token_ids for out in outs] == [[9, i] for i in range(5)]
    assert [len(out.outputs[0].token_ids) for out in outs] == counts
    assert len({out.request_id for out in outs}) == 5


def test_numbers_of_params_and_priorities_must_fit(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer)
    with pytest.raises(BadRequest, match="2 prompts but 3 SamplingParams"):
        llm.generate(["a", "b"], [params(1)] * 3)
    with pytest.raises(BadRequest, match="2 prompts but 1 priorities"):
        llm.generate(["a", "b"], params(1), priority=[1])
    llm.generate(["a", "b"], params(1), priority=[3, 4])
    assert [request.priority for request in engine.requests] == [3, 4]


def test_more_prompts_than_the_engine_queues(engine: ScriptedEngine, preparer: Preparer) -> None:
    engine.queue = 3
    outs = llm_of(engine, preparer).generate([[i] for i in range(20)], params(2))
    assert [out.prompt_token_ids for out in outs] == [[i] for i in range(20)]


def test_n_answers_and_logprobs(engine: ScriptedEngine, preparer: Preparer, text: list[int]) -> None:
    (out,) = llm_of(engine, preparer).generate("Hi", params(2, n=3, logprobs=1, prompt_logprobs=0, seed=1))
    assert [answer.index for answer in out.outputs] == [0, 1, 2]
    answer = out.outputs[0]
    assert answer.logprobs is not None
    assert [list(position) for position in answer.logprobs] == [[text[0], 5], [text[1], 5]]
    first = answer.logprobs[0][text[0]]
    assert (first.rank, first.decoded_token) == (
        1,
        preparer.tokenizer and preparer.tokenizer.decode([text[0]]),
    )
    assert answer.cumulative_logprob == pytest.approx(
        sum(p[t].logprob for p, t in zip(answer.logprobs, text, strict=False))
    )
    assert out.prompt_logprobs is not None
    assert out.prompt_logprobs[0] is None
    assert len(out.prompt_logprobs) == len(out.prompt_token_ids or [])
    assert len({request.sampling.seed for request in engine.requests}) == 3


def test_a_stop_string_ends_it_and_aborts_the_engine(engine: ScriptedEngine, preparer: Preparer) -> None:
    (out,) = llm_of(engine, preparer).generate("Hi", params(50, stop=" is"))
    assert out.outputs[0].text == " the sky"
    assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason) == ("stop", " is")
    assert len(engine.aborted) == 1
    assert not engine.busy()


def test_streams_hold_deltas(engine: ScriptedEngine, preparer: Preparer, text: list[int]) -> None:
    pieces = list(llm_of(engine, preparer).generate(["a", "b"], params(len(text), logprobs=0), stream=True))
    for request_id in ("0", "1"):
        mine = [piece for piece in pieces if piece.request_id == request_id]
        assert "".join(piece.outputs[0].text for piece in mine) == " the sky is blue"
        assert [i for piece in mine for i in piece.outputs[0].token_ids] == text
        assert [len(piece.outputs[0].logprobs or []) for piece in mine] == [1] * len(text)
        assert [piece.finished for piece in mine] == [False] * (len(text) - 1) + [True]


def test_a_stream_of_final_outputs(engine: ScriptedEngine, preparer: Preparer) -> None:
    wanted = params(4, output_kind=RequestOutputKind.FINAL_ONLY)
    (out,) = list(llm_of(engine, preparer).generate("a", wanted, stream=True))
    assert out.outputs[0].text == " the sky is blue"


def test_leaving_a_stream_aborts_it_and_spares_the_other(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer)
    first = llm.generate("a", params(100), stream=True)
    second = llm.generate("b", params(4), stream=True)
    next(first)
    next(second)
    first.close()  # type: ignore[attr-defined]
    assert engine.aborted == ["0"]
    assert "".join(piece.outputs[0].text for piece in second) == " sky is blue"
    assert not engine.busy()


@pytest.fixture
def python_sigint() -> Iterator[None]:
    """Python's own handler, also where the shell made this process ignore the signal (a job in the back)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_sigint")
def test_ctrl_c_during_a_step_aborts_everything(engine: ScriptedEngine, preparer: Preparer) -> None:
    def interrupt() -> None:
        if engine.steps == 3:
            signal.raise_signal(signal.SIGINT)

    engine.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm_of(engine, preparer).generate(["a", "b"], params(100), use_tqdm=False)
    assert engine.steps == 3
    assert sorted(engine.aborted) == ["0", "1"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_engine_failure_is_an_error_not_an_answer(engine: ScriptedEngine, preparer: Preparer) -> None:
    engine.error_at = 1
    with pytest.raises(OctavoError, match="it broke"):
        llm_of(engine, preparer).generate(["a", "b"], params(10))
    assert not engine.busy()


def test_defaults_come_from_the_generation_config(engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    preparer = preparer_of(tokenizer, defaults={"temperature": 0.25, "top_k": 7}, max_tokens=3)
    llm = llm_of(engine, preparer)
    wanted = llm.get_default_sampling_params()
    assert (wanted.temperature, wanted.top_k, wanted.max_tokens) == (0.25, 7, 3)
    (out,) = llm.generate("a")
    assert len(out.outputs[0].token_ids) == 3
    assert engine.requests[0].sampling.top_k == 7
    assert llm_of(engine, preparer_of(tokenizer)).get_default_sampling_params().max_tokens == 16


def test_chat_renders_the_template(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer)
    talk = [{"role": "user", "content": "Hi"}]
    (out,) = llm.chat(talk, params(2))
    view = llm.get_tokenizer()
    assert out.prompt == view.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert out.prompt_token_ids == view.apply_chat_template(talk, add_generation_prompt=True)
    assert len(llm.chat([talk, talk], params(2))) == 2
    (own,) = llm.chat(
        talk, params(1), chat_template="{{ messages[0].content }}{{ x }}", chat_template_kwargs={"x": 3}
    )
    assert own.prompt == "Hi3"
    assert (
        "".join(piece.outputs[0].text for piece in llm.chat(talk, params(4), stream=True))
        == " the sky is blue"
    )


@pytest.mark.parametrize("messages", [[], "hi", [["x"]], [{"content": "x"}], [[]]])
def test_bad_conversations(messages: Any, engine: ScriptedEngine, preparer: Preparer) -> None:
    with pytest.raises(BadRequest):
        llm_of(engine, preparer).chat(messages)


def test_progress_bar_is_only_for_people(
    engine: ScriptedEngine, preparer: Preparer, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = llm_of(engine, preparer)
    llm.generate(["a", "b"], params(2))
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"], params(2), use_tqdm=True)
    assert "Processed prompts" in capsys.readouterr().err
    seen: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            seen.append(options["total"])

        def update(self, count: int) -> None:
            seen.append(count)

        def close(self) -> None:
            seen.append("closed")

    llm.generate(["a", "b"], params(2), use_tqdm=Bar)
    assert seen == [2, 1, 1, "closed"]


native = pytest.mark.skipif(
    importlib.util.find_spec("octavo._native") is None, reason="the extension is not built"
)


SCRIPT = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from octavo import LLM, SamplingParams
llm = LLM(device="cpu", dtype="float32", max_model_len=256, seed=0)
for out in llm.chat([{"role": "user", "content": "Why is the sky blue?"}],
                    SamplingParams(temperature=0, max_tokens=80), stream=True):
    print(out.outputs[0].text, end="", flush=True)
ids = llm.get_tokenizer().encode("The sky is")
greedy = SamplingParams(temperature=0, max_tokens=8)
alone = [llm.generate([p], greedy)[0].outputs[0].token_ids for p in (ids, [5, 6])]
both = [o.outputs[0].token_ids for o in llm.generate([ids, [5, 6]], greedy)]
assert alone == both, (alone, both)
"""


@native
def test_an_unguarded_script_without_torch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3
    assert "No model named: the bundled pocket model answers" in done.stderr


def test_sleep_until_woken(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer, quiet=True)
    llm.sleep(level=2)
    assert engine.rests == 1
    with pytest.raises(Unavailable, match="wake_up"):
        llm.generate("a", params(4))
    llm.wake_up()
    assert llm.generate("a", params(4))[0].outputs[0].text == " the sky is blue"
    with pytest.raises(BadRequest, match="level"):
        llm.sleep(level=3)
    stream = llm.generate("a", params(4), stream=True)
    next(iter(stream))
    with pytest.raises(OctavoError, match="running"):
        llm.sleep()
    assert llm.reset_prefix_cache(reset_running_requests=False)


def test_what_is_put_aside_is_answered_together(engine: ScriptedEngine, preparer: Preparer) -> None:
    llm = llm_of(engine, preparer, quiet=True)
    ids = llm.enqueue(["a", "b"], params(4))
    ids += llm.enqueue_chat([{"role": "user", "content": "c"}], params(2))
    assert (len(set(ids)), engine.requests) == (3, [])
    with pytest.raises(BadRequest):
        llm.enqueue([3.5], params(4))  # type: ignore[list-item]
    found = llm.wait_for_completion()
    assert [one.request_id for one in found] == ids
    assert [len(one.outputs[0].token_ids) for one in found] == [4, 4, 2]
    assert llm.wait_for_completion() == []
    assert llm.generate("a", params(4))[0].finished


def test_pieces_of_a_stream_hold_as_many_tokens_as_asked(
    engine: ScriptedEngine, preparer: Preparer, text: list[int]
) -> None:
    llm = llm_of(engine, preparer)
    stream = llm.generate("Hello", params(8, stream_interval=3), stream=True)
    pieces = [out.outputs[0].token_ids for out in stream]
    assert [len(piece) for piece in pieces] == [1, 3, 3, 1]
    assert [token for piece in pieces for token in piece] == text * 2


def test_arguments_of_other_kinds_of_models_are_refused_when_they_are_given(
    engine: ScriptedEngine, preparer: Preparer
) -> None:
    llm = llm_of(engine, preparer)
    talk = [{"role": "user", "content": "Hi"}]
    llm.generate("Hi", params(1), mm_processor_kwargs={})
    llm.chat(talk, params(1), mm_processor_kwargs=None, tokenization_kwargs={"add_special_tokens": True})
    for call in (llm.generate, llm.chat):
        with pytest.raises(BadRequest, match="text only") as caught:
            call("Hi" if call == llm.generate else talk, params(1), mm_processor_kwargs={"num_crops": 4})
        assert caught.value.param == "mm_processor_kwargs"
    with pytest.raises(BadRequest, match="no 'truncation' here"):
        llm.chat(talk, params(1), tokenization_kwargs={"truncation": True})
    assert llm.supported_tasks == ("generate",)
