"""Responses that are kept: conversations, background work, and the bounds of the store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from running import LIMIT_S, Running
from test_responses import SCRIPT, TOOL, check, check_event, events_of

from octavo.errors import QueueFull


@pytest.fixture
def server() -> Any:
    from fake_service import FakeService

    fake = FakeService()
    with Running(fake, api_keys=("one", "two")) as running:
        running.fake = fake  # type: ignore[attr-defined]
        yield running


def connect(server: Any, key: str = "one") -> httpx.Client:
    return httpx.Client(
        base_url=f"{server.url}/v1", timeout=LIMIT_S, headers={"Authorization": f"Bearer {key}"}
    )


def test_a_conversation_goes_on(server: Any) -> None:
    with connect(server) as http, connect(server, "two") as stranger:
        first = http.post("/responses", json={"input": "A", "instructions": "Old."}).json()
        assert http.get(f"/responses/{first['id']}").json() == first
        server.fake.script = SCRIPT
        more = {"input": "B", "previous_response_id": first["id"], "instructions": "New.", "tools": [TOOL]}
        second = http.post("/responses", json=more).json()
        output = {"type": "function_call_output", "call_id": "call_a", "output": "sunny"}
        third = http.post("/responses", json={"input": [output], "previous_response_id": second["id"]})
        assert third.status_code == 200, third.text
        roles = [m["role"] for m in server.fake.jobs[-1].messages]
        assert roles == ["user", "assistant", "user", "assistant", "tool"]
        assert server.fake.jobs[1].messages[0] == {"role": "system", "content": "New."}
        last = server.fake.jobs[-1].messages[-2]
        assert (last["content"], last["reasoning"]) == ("I will look.", "Let me see.")
        assert [call["id"] for call in last["tool_calls"]] == ["call_a", "call_b"]
        reference = {"type": "item_reference", "id": second["output"][1]["id"]}
        assert http.post("/responses", json={"input": [reference]}).status_code == 200
        assert server.fake.jobs[-1].messages[0]["content"] == "I will look."
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            assert stranger.request(method, f"/responses/{first['id']}{path}").status_code == 404
        assert stranger.post("/responses", json={**more, "input": "x"}).status_code == 404


def test_input_items(server: Any) -> None:
    with connect(server) as http:
        items = [{"role": "user", "content": f"{i}"} for i in range(3)]
        items.append({"type": "function_call_output", "call_id": "c", "output": "x"})  # type: ignore[dict-item]
        made = http.post("/responses", json={"input": items}).json()
        path = f"/responses/{made['id']}/input_items"
        page = http.get(path, params={"order": "asc", "limit": 2}).json()
        check(page, "ResponseItemList", "ItemList")
        assert page["has_more"]
        assert [i["content"][0]["text"] for i in page["data"]] == ["0", "1"]
        rest = http.get(path, params={"order": "asc", "after": page["last_id"]}).json()
        check(rest, "ResponseItemList", "ItemList")
        assert not rest["has_more"]
        assert [i["type"] for i in rest["data"]] == ["message", "function_call_output"]
        assert http.get(path).json()["data"][0]["type"] == "function_call_output"
        assert http.get(path, params={"limit": 0}).status_code == 400
        assert http.get(path, params={"limit": "x"}).status_code == 400


def test_delete_and_store_false(server: Any) -> None:
    with connect(server) as http:
        made = http.post("/responses", json={"input": "A"}).json()
        gone = http.delete(f"/responses/{made['id']}").json()
        assert gone == {"id": made["id"], "object": "response", "deleted": True}
        assert http.get(f"/responses/{made['id']}").status_code == 404
        unkept = http.post("/responses", json={"input": "A", "store": False}).json()
        assert unkept["store"] is False
        assert http.get(f"/responses/{unkept['id']}").status_code == 404


def wait_for(http: httpx.Client, name: str, *states: str) -> dict[str, Any]:
    for _ in range(2000):
        found: dict[str, Any] = http.get(f"/responses/{name}").json()
        if found["status"] in states:
            return found
    raise AssertionError(found)


def test_background(server: Any) -> None:
    with connect(server) as http:
        made = http.post("/responses", json={"input": "A", "background": True}).json()
        check(made, "Response", "ResponseReply")
        assert (made["status"], made["output"]) == ("queued", [])
        done = wait_for(http, made["id"], "completed")
        assert done["output"][0]["content"][0]["text"] == "Hello world"
        assert http.post(f"/responses/{made['id']}/cancel").json() == done, "too late to change anything"
        assert http.get(f"/responses/{made['id']}", params={"stream": "true"}).status_code == 400


def test_a_background_response_is_cancelled(server: Any) -> None:
    server.fake.gate = asyncio.Semaphore(3)
    with connect(server) as http:
        made = http.post("/responses", json={"input": "A", "background": True}).json()
        wait_for(http, made["id"], "in_progress")
        early = http.post("/responses", json={"input": "B", "previous_response_id": made["id"]})
        assert early.status_code == 400
        ended = http.post(f"/responses/{made['id']}/cancel").json()
        check(ended, "Response", "ResponseReply")
        assert ended["status"] == "cancelled"
        assert not server.fake.live
        assert http.get(f"/responses/{made['id']}").json() == ended
        other = http.post("/responses", json={"input": "A", "background": True}).json()
        assert http.delete(f"/responses/{other['id']}").json()["deleted"]
        assert not server.fake.live
        assert http.get(f"/responses/{other['id']}").status_code == 404


def test_a_background_stream_goes_on_without_its_reader(server: Any) -> None:
    server.fake.delay_s = 0.001
    with connect(server) as http:
        body = {"input": "A", "background": True, "stream": True}
        with http.stream("POST", "/responses", json=body) as response:
            line = next(line for line in response.iter_lines() if line.startswith("data: "))
            made = json.loads(line.removeprefix("data: "))["response"]
        done = wait_for(http, made["id"], "completed")
        assert not server.fake.aborted
        again = events_of(http.get(f"/responses/{made['id']}", params={"stream": "true"}))
        for event in again:
            check_event(event)
        assert [e["type"] for e in again[:3]] == [
            f"response.{s}" for s in ("created", "queued", "in_progress")
        ]
        assert again[-1]["response"] == done
        rest = events_of(http.get(f"/responses/{made['id']}", params={"stream": "true", "starting_after": 4}))
        assert rest == again[5:]


def test_a_client_that_leaves_ends_its_stream(server: Any) -> None:
    server.fake.gate = asyncio.Semaphore(3)
    body = {"input": "A", "stream": True}
    with connect(server) as http, http.stream("POST", "/responses", json=body) as response:
        next(response.iter_lines())
    for _ in range(2000):
        if server.fake.aborted:
            break
        httpx.get(f"{server.url}/health")
    assert server.fake.aborted
    assert not server.fake.live


def test_the_store_is_bounded() -> None:
    from octavo.errors import NotFound
    from octavo.server.openai.responses.replies import ResponseReply
    from octavo.server.openai.responses.store import Record, Store

    def record(name: str, size: int = 0) -> Record:
        reply = ResponseReply(id=name, created_at=0, model="m", temperature=1, top_p=1, text={})
        return Record(reply, [{"id": "i" + name, "type": "message", "text": "x" * size}], [])

    store = Store(3, 1 << 20)
    for i in range(5):
        store.keep("a", record(str(i)))
        store.has("a", "0")
    assert len(store) == 3
    with pytest.raises(NotFound):
        store.get("a", "1")
    store.get("a", "2")
    store.keep("a", record("5"))
    assert store.has("a", "2"), "what was read lately stays"
    assert not store.has("a", "3")
    assert store.find_item("a", "i5") is not None
    assert store.find_item("b", "i5") is None
    again = record("6")
    again.given = (*again.given, store.find_item("a", "i4") or {})
    store.keep("a", again)
    assert not store.has("a", "4")
    assert store.find_item("a", "i4") is not None, "a later response has it too"
    for name in [name for _, name in list(store._records)]:
        store.remove("a", name)
    assert not store._items
    store = Store(100, 5000)
    for i in range(20):
        store.keep("a", record(str(i), 1000))
    assert 0 < len(store) < 5
    assert store.held_bytes <= 5000
    store.keep("a", record("huge", 6000))
    assert not store.has("a", "huge")
    assert len(store) > 0
    for name in [name for _, name in list(store._records)]:
        store.remove("a", name)
    assert store.held_bytes == 0
    store = Store(2, 1 << 20)
    store.hold("a", record("x"))
    store.hold("a", record("y"))
    with pytest.raises(QueueFull):
        store.hold("a", record("z"))


def test_a_server_that_keeps_nothing(client: Any) -> None:
    client.settings["max_stored_responses"] = 0
    reply = client.post("/v1/responses", {"input": "Hi"}).json()
    assert reply["store"] is False
    assert client.post("/v1/responses", {"input": "Hi", "background": True}).status_code == 400
