"""The Service over a scripted engine: every job ends once per sequence, whatever happens on either side."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
from service_fakes import INFO, FakeClient, FakeRecorder, drain, finishes, job, run, text_of

from octavo.config.generation import GenerationConfig
from octavo.errors import BadRequest, QueueFull, Unavailable
from octavo.pipeline.prepare import Prepared, Preparer
from octavo.pipeline.service import Service
from octavo.pipeline.stop import EndTokens
from octavo.pipeline.template import ChatTemplate
from octavo.pipeline.tokenizer import Tokenizer
from octavo.types.engine import Finish, TokenOut
from octavo.types.job import Event, Job, Started
from octavo.types.sampling import SamplingParams


@pytest.fixture
def preparer(byte_tokenizer: Tokenizer) -> Preparer:
    template = ChatTemplate(byte_tokenizer.config["chat_template"])
    return Preparer(byte_tokenizer, template, GenerationConfig(), INFO, ends=EndTokens(2), seed=0)


def test_memory_is_given_back_after_long_texts_and_now_and_then(
    preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.pipeline.service._TRIM_S", 0.01)
    trimmed: list[str] = []

    async def ticks() -> None:
        for _ in range(5):
            await asyncio.sleep(0.01)

    async def body(service: Service, client: FakeClient) -> None:
        await ticks()
        assert trimmed == []  # nobody has asked for anything
        await service.tokenize(prompt="x")
        while not trimmed:
            await asyncio.sleep(0.005)
        await ticks()
        assert len(trimmed) == 1
        monkeypatch.setattr("octavo.pipeline.service._TRIM_S", 1000.0)
        await ticks()
        await service.tokenize(prompt="the sky " * 20_000)
        assert len(trimmed) == 2
        await service.tokenize(prompt="the sky " * 1_000)
        assert len(trimmed) == 2

    run(preparer, body, trim=lambda: trimmed.append("now"))


def test_started_then_events_then_one_finish(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    recorder = FakeRecorder()

    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job())
        started = await anext(stream)
        assert isinstance(started, Started)
        assert started.prompt == "the sky"
        client.say("j", byte_tokenizer.encode("is blue 🙂"), Finish("length"))
        events = await drain(stream)
        assert text_of(events) == "is blue 🙂"
        assert finishes(events) == [Finish("length")]
        assert service.open_jobs == 0
        assert client.aborted == []
        count = len(byte_tokenizer.encode("is blue 🙂"))
        assert sum(n for _, n in recorder.tokens) == count
        (times,) = recorder.finished
        assert (times.output_tokens, times.finish_reason, times.prompt_tokens) == (
            count,
            "length",
            len(started.prompt_ids),
        )
        assert times.first_token_s is not None

    run(preparer, body, recorder=recorder)


def test_a_reader_that_keeps_up_gets_an_event_per_token(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job())
        await anext(stream)
        for i in range(5):
            client.say("j", [70 + i])
            event = await anext(stream)
            assert isinstance(event, Event)
            assert event.tokens == (70 + i,)

    run(preparer, body)


def test_a_slow_reader_gets_merged_events(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job())
        ids = byte_tokenizer.encode("the sky is blue. " * 100)
        client.say("j", ids, Finish("length"))
        await asyncio.sleep(0)
        assert len(stream._pending) == 1
        events = await drain(stream)
        assert len(events) == 1
        assert text_of(events) == "the sky is blue. " * 100
        assert events[0].tokens == tuple(ids)
        assert len(events[0].logprobs) == len(ids)

    run(preparer, body)


def test_n_sequences_each_end_once(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job(n=3))
        assert [r.id for r in client.requests] == ["j-0", "j-1", "j-2"]
        for i in (2, 0, 1):
            client.say(f"j-{i}", byte_tokenizer.encode("abc"[i] * 3), Finish("stop" if i else "length"))
        events = await drain(stream)
        for i in range(3):
            assert len(finishes(events, i)) == 1
        assert text_of(events, 0) == "aaa"

    run(preparer, body)


def test_a_stop_string_aborts_the_engine(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job(stop=["blue"]))
        client.say("j", byte_tokenizer.encode("is blue and more"), Finish("length"))
        events = await drain(stream)
        assert text_of(events) == "is "
        assert finishes(events) == [Finish("stop", "blue")]
        assert client.aborted == ["j"]

    run(preparer, body)


def test_closing_early_aborts(preparer: Preparer) -> None:
    recorder = FakeRecorder()

    async def body(service: Service, client: FakeClient) -> None:
        async with await service.submit(job(n=2)) as stream:
            await anext(stream)
            client.say("j-0", [70], Finish("stop"))
            await anext(stream)
        assert client.aborted == ["j-1"]
        assert service.open_jobs == 0
        client.say("j-1", [70], Finish("abort"))
        await asyncio.sleep(0)
        assert sorted(times.finish_reason for times in recorder.finished) == ["abort", "stop"]
        await stream.aclose()
        assert [item async for item in stream] == []

    run(preparer, body, recorder=recorder)


def test_an_id_may_come_again_while_its_first_try_still_ends(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        (await service.submit(job())).close()
        again = await service.submit(job())
        assert client.requests[-1].id != client.requests[0].id
        for request, reason in zip(client.requests, ("abort", "stop"), strict=True):
            client.say(request.id, [70], Finish(reason))
        assert [item async for item in again][-1].finish == Finish("stop")
        (await service.submit(job())).close()
        assert client.requests[-1].id == "j"

    run(preparer, body)


def test_abort_by_id_ends_the_stream(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job())
        assert service.abort("j")
        assert not service.abort("other")
        assert finishes(await drain(stream)) == [Finish("abort")]
        assert client.aborted == ["j"]

    run(preparer, body)


def test_an_engine_that_dies_ends_everyone(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        streams = [await service.submit(job(name, n=n)) for name, n in (("a", 1), ("b", 2))]
        client.say("a", [70])
        client.on_failure(RuntimeError("kernel trap"))
        for stream, n in zip(streams, (1, 2), strict=True):
            events = await drain(stream)
            for i in range(n):
                (finish,) = finishes(events, i)
                assert finish.reason == "error"
                assert finish.error == "The engine has failed; its log says why."
        assert not service.ready
        assert service.failure == "kernel trap"
        with pytest.raises(Unavailable, match="engine has failed"):
            await service.submit(job())

    run(preparer, body)


def test_an_engine_that_is_stuck_is_not_ready_until_it_comes_back(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        client.stalled = True
        assert not service.ready
        with pytest.raises(Unavailable, match="step"):
            await service.submit(job())
        assert service.failure is None
        client.stalled = False
        assert service.ready

    run(preparer, body)


def test_an_engine_that_is_silently_gone_is_not_ready(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        assert service.ready
        client.alive = False
        assert not service.ready
        assert service.failure is not None
        with pytest.raises(Unavailable):
            await service.submit(job())

    run(preparer, body)


def test_a_full_queue_leaves_nothing_behind(preparer: Preparer) -> None:
    recorder = FakeRecorder()

    async def body(service: Service, client: FakeClient) -> None:
        client.room = 1
        with pytest.raises(QueueFull):
            await service.submit(job(n=3))
        assert client.aborted == ["j-0"]
        client.say("j-0", [70], Finish("abort"))
        await asyncio.sleep(0)
        assert service.open_jobs == 0
        assert not service._sequences
        assert not service._leaving
        assert not recorder.finished, "what was refused is no request that ended"

    run(preparer, body, recorder=recorder)


def test_refused_jobs_never_reach_the_engine(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        with pytest.raises(BadRequest, match="empty"):
            await service.submit(job(prompt=""))
        await service.submit(job())
        with pytest.raises(BadRequest, match="already running"):
            await service.submit(job())
        assert len(client.requests) == 1

    run(preparer, body)


def test_a_form_that_takes_too_long_to_compile(preparer: Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    prepare = preparer.prepare

    def slow(job: Job, arrival_s: float | None = None) -> Any:
        if "slow" in str(job.prompt):
            over.wait(10)
        return prepare(job, arrival_s)

    monkeypatch.setattr(preparer, "prepare", slow)

    async def body(service: Service, client: FakeClient) -> None:
        form = {"choice": ["a", "b"]}
        try:
            with pytest.raises(BadRequest, match=r"more than 0\.05 s") as refused:
                await service.submit(job(prompt="slow", structured_outputs=form))
            assert refused.value.param == "structured_outputs"
        finally:
            over.set()
        assert client.requests == []

    run(preparer, body, form_timeout_s=0.05)


def test_not_ready_before_start(preparer: Preparer) -> None:
    async def main() -> None:
        service = Service(preparer, FakeClient())
        assert not service.ready
        with pytest.raises(Unavailable, match="starting"):
            await service.submit(job())

    asyncio.run(main())


def test_best_of_gives_the_likeliest(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job(n=2, best_of=4))
        for i, value in enumerate((-3.0, -1.0, -4.0, -2.0)):
            client.say(f"j-{i}", byte_tokenizer.encode("abcd"[i]), Finish("length"), value)
        events = await drain(stream)
        assert [(event.index, event.text) for event in events] == [(0, "b"), (1, "d")]
        assert all(event.logprobs == () and event.finish is not None for event in events)

    run(preparer, body)


def test_stop_drains_then_aborts(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        first, second = await service.submit(job("a")), await service.submit(job("b"))
        stopping = asyncio.create_task(service.stop(0.2))
        await asyncio.sleep(0)
        assert not service.ready
        with pytest.raises(Unavailable, match="shutting down"):
            await service.submit(job("c"))
        client.say("a", [70], Finish("stop"))
        assert finishes(await drain(first)) == [Finish("stop")]
        await stopping
        assert finishes(await drain(second)) == [Finish("abort")]
        assert client.stopped == 0.0

    run(preparer, body)


def test_stop_does_not_wait_longer_than_needed(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        stream = await service.submit(job("a"))
        stopping = asyncio.create_task(service.stop(1000.0))
        await asyncio.sleep(0)
        client.say("a", [70], Finish("stop"))
        await drain(stream)
        await stopping

    run(preparer, body)


def test_long_texts_leave_the_event_loop(preparer: Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    prepare = preparer.prepare

    def watch(made: Job, arrival_s: float | None = None) -> Prepared:
        threads.append(threading.current_thread().name)
        return prepare(made, arrival_s)

    monkeypatch.setattr(preparer, "prepare", watch)

    async def body(service: Service, client: FakeClient) -> None:
        await service.submit(job("short"))
        await service.submit(job("long", "the sky " * 300))
        messages = ({"role": "user", "content": [{"type": "text", "text": "x"}]},)
        await service.submit(Job(id="parts", messages=messages, sampling=SamplingParams()))

    run(preparer, body)
    assert threads.pop(0) == threading.current_thread().name
    assert all(name.startswith("octavo-text") for name in threads)
    assert len(threads) == 2


def test_a_cancelled_submit_leaves_nothing_behind(preparer: Preparer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        task = asyncio.create_task(service.submit(job(prompt="the sky " * 300)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.open_jobs == 0
        assert client.requests == []

    run(preparer, body)


def test_outputs_from_another_thread(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        streams = [await service.submit(job(f"j{i}")) for i in range(8)]
        ids = byte_tokenizer.encode("the sky is blue")

        def engine() -> None:
            for k, token in enumerate(ids):
                end = Finish("length") if k == len(ids) - 1 else None
                client.on_outputs([TokenOut(id=f"j{i}", tokens=(token,), finish=end) for i in range(8)])

        thread = threading.Thread(target=engine)
        thread.start()
        texts = [text_of(events) for events in await asyncio.gather(*(drain(stream) for stream in streams))]
        thread.join()
        assert texts == ["the sky is blue"] * 8

    run(preparer, body)


def test_one_broken_sequence_does_not_take_the_others(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        bad, good = await service.submit(job("bad")), await service.submit(job("good"))

        def broken(out: TokenOut) -> Event | None:
            raise RuntimeError("boom")

        bad.prepared.texts[0].push = broken  # type: ignore[method-assign]
        outs = [TokenOut(id=name, tokens=(70,), finish=None) for name in ("bad", "good")]
        client.on_outputs(outs)
        client.say("good", [71], Finish("stop", 71))
        assert finishes(await drain(bad))[0].reason == "error"
        assert finishes(await drain(good)) == [Finish("stop", 71)]
        assert client.aborted == ["bad"]
        worse, other = await service.submit(job("worse")), await service.submit(job("other"))
        worse.prepared.texts[0].push = broken  # type: ignore[method-assign]
        client.on_failure(RuntimeError("dead"))
        assert [finishes(await drain(stream))[0].reason for stream in (worse, other)] == ["error"] * 2

    run(preparer, body)


def test_tokenize_and_detokenize(preparer: Preparer, byte_tokenizer: Tokenizer) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        started = await service.tokenize(prompt="the sky")
        assert started.prompt_ids == tuple(byte_tokenizer.encode("the sky"))
        assert (await service.tokenize(prompt="")).prompt_ids == ()
        chat = await service.tokenize(messages=[{"role": "user", "content": "hi"}])
        assert chat.prompt is not None
        assert chat.prompt.endswith("assistant\n")
        assert await service.detokenize(started.prompt_ids) == "the sky"
        with pytest.raises(BadRequest, match="out of vocabulary"):
            await service.detokenize([10**6])

    run(preparer, body)


def test_requests_without_an_end_are_announced_without_their_text(
    preparer: Preparer, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        await service.submit(job("a", "canary prompt", max_tokens=None))
        await service.submit(job("b", "canary prompt", max_tokens=None))
        client.say("a", [70])
        service.abort("a")
        await asyncio.sleep(0)

    with caplog.at_level(logging.DEBUG, logger="octavo"):
        run(preparer, body)
    warnings = [record.getMessage() for record in caplog.records if "no max_tokens" in record.getMessage()]
    assert len(warnings) == 1
    assert "canary" not in caplog.text


def test_the_periodic_line(preparer: Preparer, caplog: pytest.LogCaptureFixture) -> None:
    async def body(service: Service, client: FakeClient) -> None:
        while "running 0" not in caplog.text:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO, logger="octavo"):
        run(preparer, body, stats_line=lambda stats, now: f"running {stats.running}", log_interval_s=0.01)


def test_importing_the_text_side_is_light() -> None:
    code = "import sys, octavo.pipeline.service; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["jinja2", "tokenizers", "sentencepiece", "torch", "transformers", "numpy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
