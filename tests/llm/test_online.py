"""AsyncLLM over the real text side and a scripted engine."""

from __future__ import annotations

import asyncio

import pytest
from scripted_engine import ScriptedEngine, async_llm, params, run

from octavo.errors import Unavailable
from octavo.pipeline.prepare import Preparer
from octavo.types.sampling import RequestOutputKind


def test_async_streams_by_output_kind(engine: ScriptedEngine, preparer: Preparer) -> None:
    async def main() -> None:
        llm = async_llm(engine, preparer)
        texts = {}
        for kind in RequestOutputKind:
            stream = llm.generate("a", params(4, output_kind=kind), f"id-{kind.name}")
            texts[kind.name] = [(out.outputs[0].text, out.finished) async for out in stream]
        assert texts["FINAL_ONLY"] == [(" the sky is blue", True)]
        assert texts["CUMULATIVE"][-1] == (" the sky is blue", True)
        assert texts["CUMULATIVE"][0][0] == " the"
        assert "".join(text for text, _ in texts["DELTA"]) == " the sky is blue"
        await llm.shutdown()

    run(main())


def test_async_abort_ends_the_stream(engine: ScriptedEngine, preparer: Preparer) -> None:
    async def main() -> None:
        llm = async_llm(engine, preparer)
        last = None
        async for out in llm.generate("a", params(190), "mine"):
            if last is None:
                await llm.abort("mine")
                await llm.abort(["unknown"])
            last = out
        assert last is not None
        assert last.outputs[0].finish_reason == "abort"
        assert not engine.busy()
        await llm.check_health()
        assert not llm.errored
        await llm.shutdown()

    run(main())


def test_async_leaving_aborts(engine: ScriptedEngine, preparer: Preparer) -> None:
    async def main() -> None:
        llm = async_llm(engine, preparer)
        stream = llm.generate("a", params(190), "mine")
        await anext(stream)  # type: ignore[arg-type]
        await stream.aclose()  # type: ignore[attr-defined]
        assert engine.aborted == ["mine"]
        await llm.shutdown()

    run(main())


def test_async_sleep_waits_for_what_runs(engine: ScriptedEngine, preparer: Preparer) -> None:
    async def main() -> None:
        llm = async_llm(engine, preparer)
        stream = llm.generate("a", params(4), "mine")
        await anext(stream)
        asleep = asyncio.create_task(llm.sleep(1))
        assert [out.finished async for out in stream][-1]
        await asleep
        assert engine.rests == 1
        assert await llm.is_sleeping()
        with pytest.raises(Unavailable, match="wake_up"):
            _ = [out async for out in llm.generate("a", params(4))]
        await llm.wake_up(tags=["weights"])
        assert [out async for out in llm.generate("a", params(4))][-1].finished
        assert await llm.reset_prefix_cache()
        assert not await llm.pin_lora(1)
        assert (llm.is_running, llm.is_stopped) == (True, False)
        await llm.shutdown()
        assert (llm.is_running, llm.is_stopped) == (False, True)

    run(main())


@pytest.mark.parametrize("n", [1, 2])
def test_pieces_of_a_stream_hold_as_many_tokens_as_asked(
    engine: ScriptedEngine, preparer: Preparer, text: list[int], n: int
) -> None:
    async def work() -> None:
        llm = async_llm(engine, preparer)
        asked = params(8, stream_interval=3, n=n, seed=1, output_kind=RequestOutputKind.DELTA)
        pieces: dict[int, list[list[int]]] = {}
        async for out in llm.generate("Hello", asked):
            pieces.setdefault(out.outputs[0].index, []).append(out.outputs[0].token_ids)
        assert len(pieces) == n
        for found in pieces.values():
            assert [len(piece) for piece in found] == [1, 3, 3, 1]
            assert [token for piece in found for token in piece] == text * 2

    run(work())
