"""SequenceText: text, tokens and exactly one finish for each sequence."""

from __future__ import annotations

import pytest

from octavo.pipeline.detokenizer import make_detokenizer
from octavo.pipeline.output import REPETITION, SequenceText
from octavo.pipeline.stop import LoopGuard, StopStrings
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import Finish, TokenLogprobs, TokenOut
from octavo.types.job import Event


def make(tokenizer: Tokenizer, stops: list[str] | None = None, **options: object) -> SequenceText:
    matcher = StopStrings(stops, bool(options.get("keep_end_text"))) if stops else None
    return SequenceText(3, detokenizer=make_detokenizer(tokenizer), stops=matcher, **options)  # type: ignore[arg-type]


def feed(text: SequenceText, ids: list[int], finish: Finish | None) -> list[Event]:
    events = []
    for k, i in enumerate(ids):
        out = TokenOut(
            id="a",
            tokens=(i,),
            logprobs=(TokenLogprobs((i,), (-1.0,), (1,)),),
            finish=finish if k == len(ids) - 1 else None,
        )
        if (event := text.push(out)) is not None:
            events.append(event)
    return events


def whole(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_one_event_per_token_and_the_text_of_the_whole(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("Hi 🙂!")
    events = feed(make(byte_tokenizer), ids, Finish("length"))
    assert len(events) == len(ids)
    assert whole(events) == "Hi 🙂!"
    assert events[-1].finish == Finish("length")
    assert all(event.index == 3 and len(event.logprobs) == 1 for event in events)


def test_the_end_token_has_no_text_unless_asked(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("Hi.<think>")
    plain = feed(make(byte_tokenizer), ids, Finish("stop", ids[-1]))
    assert whole(plain) == "Hi."
    assert plain[-1].tokens == (ids[-1],)
    assert whole(feed(make(byte_tokenizer, keep_end_text=True), ids, Finish("stop", ids[-1]))) == "Hi.<think>"


def test_a_stop_string_ends_the_sequence_once(byte_tokenizer: Tokenizer) -> None:
    text = make(byte_tokenizer, ["blue"])
    events = feed(text, byte_tokenizer.encode("the sky is blue today"), Finish("length"))
    assert whole(events) == "the sky is "
    assert events[-1].finish == Finish("stop", "blue")
    assert sum(event.finish is not None for event in events) == 1
    assert text.finished
    assert text.push(TokenOut(id="a", finish=Finish("abort"))) is None


def test_tokens_after_the_stop_in_the_same_output_are_dropped(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a.b.c")
    logprobs = tuple(TokenLogprobs((i,), (0.0,), (1,)) for i in ids)
    event = make(byte_tokenizer, ["b"]).push(TokenOut(id="a", tokens=tuple(ids), logprobs=logprobs))
    assert event is not None
    assert event.text == "a."
    assert event.tokens == tuple(ids[:3])
    assert len(event.logprobs) == 3


def test_stop_strings_wait_for_min_tokens(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a.a.a.")
    events = feed(make(byte_tokenizer, ["a"], min_tokens=3), ids, Finish("length"))
    assert whole(events) == "a.a."
    assert events[-1].finish == Finish("stop", "a")


def test_held_back_text_comes_with_the_finish(byte_tokenizer: Tokenizer) -> None:
    events = feed(make(byte_tokenizer, ["!!!"]), byte_tokenizer.encode("hi!!"), Finish("length"))
    assert whole(events) == "hi!!"


def test_the_loop_guard_ends_with_length_and_repetition(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("the sky ") * 200
    events = feed(make(byte_tokenizer, guard=LoopGuard()), ids, Finish("length"))
    assert events[-1].finish == Finish("length", REPETITION)
    assert len(events) < len(ids)


def test_without_a_detokenizer_there_are_tokens_only() -> None:
    event = SequenceText(0).push(TokenOut(id="a", tokens=(1, 2), finish=Finish("length")))
    assert event == Event(index=0, tokens=(1, 2), finish=Finish("length"))


def test_failing_from_outside(byte_tokenizer: Tokenizer) -> None:
    text = make(byte_tokenizer, ["xyz"])
    assert text.push(TokenOut(id="a", tokens=tuple(byte_tokenizer.encode("x")))) is not None
    event = text.push(TokenOut(id="", finish=Finish("error", error="dead")))
    assert event is not None
    assert (event.text, event.finish) == ("x", Finish("error", error="dead"))
    assert text.push(TokenOut(id="", finish=Finish("abort"))) is None


@pytest.mark.parametrize("finish", [None, Finish("length"), Finish("stop", 5)])
def test_max_tokens_zero_gives_the_prompt_numbers_only(finish: Finish | None) -> None:
    text = SequenceText(0, discard=True)
    logprobs = (None, TokenLogprobs((4,), (-2.0,), (1,)))
    event = text.push(TokenOut(id="a", tokens=(9,), prompt_logprobs=logprobs, finish=finish))
    assert event == Event(index=0, prompt_logprobs=logprobs, finish=Finish("length"))
    assert text.push(TokenOut(id="a", tokens=(9,))) is None


def test_nothing_new_is_no_event() -> None:
    assert SequenceText(0).push(TokenOut(id="a")) is None
