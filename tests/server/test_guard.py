"""Keys, Host and Origin, CORS: closed unless opened, on every route that there is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from octavo.server.guard import Keys
from octavo.server.scopes import OPEN_PATHS, RIGHTS, Right
from octavo.server.settings import ServerSettings, is_loopback

KEYS = ("alpha", "beta-ключ")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


def all_routes(client: Any) -> list[tuple[str, str]]:
    """(method, path) of everything that can be mounted."""
    client.settings.update(dev_mode=True, allow_runtime_lora=True, enable_tokenizer_info=True)
    found = []
    for route in client.app().routes:
        path = route.path.replace("{name:path}", "pocket")
        found += [(method, path) for method in route.methods]
    return sorted(set(found))


Call = tuple[str, str, dict[str, str]]


def answers(client: Any, calls: Sequence[Call]) -> list[tuple[Call, httpx.Response]]:
    """What one application says to each (method, path, headers)."""

    async def go() -> list[tuple[Call, httpx.Response]]:
        transport = httpx.ASGITransport(app=client.app(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            return [(call, await http.request(call[0], call[1], headers=call[2])) for call in calls]

    return asyncio.run(asyncio.wait_for(go(), 20))


def test_every_route_needs_the_key_but_liveness(client: Any) -> None:
    client.settings["api_keys"] = KEYS
    routes = all_routes(client)
    assert len(routes) > 60
    for (method, path, _), response in answers(client, [(*route, {}) for route in routes]):
        if path in OPEN_PATHS:
            assert response.status_code == 200, path
            continue
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert "API key" in str(response.json()["error"])  # in the shape of the route's clients


def test_open_paths_are_only_liveness() -> None:
    assert {"/health", "/ping"} == OPEN_PATHS


def test_every_rule_is_of_a_route_and_every_route_has_one(client: Any) -> None:
    all_routes(client)
    assert {route.path for route in client.app().routes} == set(RIGHTS)


def test_rights_are_apart(client: Any) -> None:
    client.settings.update(api_keys=("user",), management_api_keys=("keeper",), admin_api_keys=("boss",))
    rights = {"user": Right.INFERENCE, "keeper": Right.MANAGEMENT, "boss": Right.ADMIN}
    routes = all_routes(client)
    calls = [(*route, {"x-api-key": key}) for route in routes for key in rights]
    for call, response in answers(client, calls):
        _, path, headers = call
        wanted = RIGHTS.get(path, Right.INFERENCE)
        assert (response.status_code == 403) == (rights[headers["x-api-key"]] < wanted), call
        assert response.status_code not in (401, 500), call


@pytest.mark.parametrize(
    ("settings", "key", "may_manage", "may_administer"),
    [
        ({}, "", True, True),
        ({"host": "0.0.0.0"}, "", False, False),
        ({"host": "0.0.0.0", "api_keys": ("a",)}, "a", True, True),
        ({"api_keys": ("a",), "management_api_keys": ("m",)}, "a", False, False),
        ({"api_keys": ("a",), "management_api_keys": ("m",)}, "m", True, True),
        ({"api_keys": ("a",), "admin_api_keys": ("b",)}, "a", False, False),
        ({"api_keys": ("a",), "admin_api_keys": ("a",)}, "a", True, True),
        ({"uds": "/tmp/x", "host": ""}, "", True, True),
    ],
)
def test_who_may_manage(client: Any, settings: Any, key: str, may_manage: bool, may_administer: bool) -> None:
    """The highest kind of key that there is opens everything; without keys, loopback does."""
    client.settings.update(dev_mode=True, allow_runtime_lora=True, allow_pull=True, **settings)
    headers = {"x-api-key": key}
    load = client.post("/v1/load_lora_adapter", {}, headers=headers)
    assert (load.status_code != 403) == may_manage
    pull = client.post("/api/pull", {"model": "../x"}, headers=headers)
    assert (pull.status_code != 403) == may_manage
    assert (client.post("/wake_up", {}, headers=headers).status_code == 200) == may_administer
    assert client.post("/api/pull", {"model": "pocket"}, headers=headers).status_code == 200


def test_a_trailing_slash_is_no_other_route(client: Any) -> None:
    client.settings["api_keys"] = ("k",)
    for path in ("/v1/models/", "/v1/files/", "/health/"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": "k"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["//health", "/health/", "/health;x", "/%2fhealth", "/nothing", "/HEALTH", "/health%00"]
)
def test_odd_paths_are_not_liveness(client: Any, path: str) -> None:
    client.settings["api_keys"] = KEYS
    assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer alpha"}, 200),
        ({"Authorization": "bearer alpha"}, 200),
        ({"Authorization": "Bearer beta-ключ".encode()}, 401),
        ({"x-api-key": "alpha"}, 200),
        ({"Authorization": "Bearer alph"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic alpha"}, 401),
        ({"Authorization": "alpha"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_keys(client: Any, headers: Any, status: int) -> None:
    client.settings["api_keys"] = KEYS
    assert client.get("/v1/models", headers=headers).status_code == status


def test_keys_are_kept_hashed() -> None:
    keys = Keys(("alpha",))
    assert keys.tenant("alpha")
    assert keys.tenant("alphA") is None
    assert "alpha" not in repr(vars(keys))
    assert not Keys(())


def test_keys_share_no_prefix_cache(client: Any) -> None:
    client.settings["api_keys"] = ("alpha", "beta")
    body = {"prompt": "x", "cache_salt": "s"}
    for key in ("alpha", "beta"):
        client.post("/v1/completions", body, headers={"x-api-key": key})
        client.post("/generate", {"prompt": "x"}, headers={"x-api-key": key})
    salts = [job.salt for job in client.fake.jobs]
    assert len(set(salts)) == 4
    assert "alpha" not in "".join(salts)


def test_without_keys_any_key_will_do(client: Any) -> None:
    assert client.get("/v1/models", headers={"Authorization": "Bearer EMPTY"}).status_code == 200


def test_other_sites_reach_no_route(client: Any) -> None:
    """Every method on every route, whether it takes that method or not."""
    paths = sorted({path for _, path in all_routes(client)})
    foreign = ({"Host": "evil.example"}, {"Origin": "https://evil.example"})
    calls = [(m, path, headers) for m in METHODS for path in (*paths, "/nothing") for headers in foreign]
    for call, response in answers(client, calls):
        assert response.status_code == 403, call
    assert client.fake.jobs == []
    assert client.fake.chores == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PUT", "HEAD"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1"])
def test_dns_rebinding(client: Any, method: str, host: str) -> None:
    assert client.send(method, "/v1/models", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST", "127.9.9.9"]
)
def test_own_names_are_fine(client: Any, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_host_list(client: Any) -> None:
    client.settings["allowed_hosts"] = ("llm.home",)
    assert client.get("/v1/models", headers={"Host": "LLM.home:80"}).status_code == 200
    assert client.get("/v1/models", headers={"Host": "other.home"}).status_code == 403


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"uds": "/tmp/x"}, {"allowed_hosts": ("*",)}])
def test_host_is_free_when_not_on_loopback(client: Any, settings: Any) -> None:
    client.settings.update(settings)
    assert client.get("/v1/models", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403), ("null", 403), ("http://localhost.evil.example", 403),
        ("http://localhost:3000", 200), ("http://127.0.0.1", 200), ("http://[::1]:5", 200), ("garbage", 403),
    ],
)  # fmt: skip
def test_origin(client: Any, origin: str, status: int) -> None:
    response = client.get("/v1/models", headers={"Origin": origin})
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers, "CORS is closed"


def test_cors_when_opened(client: Any) -> None:
    client.settings.update(allowed_origins=("https://app.example",), api_keys=("k",))
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    response = client.send("OPTIONS", "/v1/chat/completions", headers=preflight)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    other = {**preflight, "Origin": "https://evil.example"}
    assert client.send("OPTIONS", "/v1/chat/completions", headers=other).status_code == 403
    plain = client.get("/v1/models", headers={"Origin": "https://app.example", "Authorization": "Bearer k"})
    assert plain.headers["access-control-allow-origin"] == "https://app.example"
    assert client.send("OPTIONS", "/v1/models").status_code == 401, "no preflight, no exception"


def test_cors_for_everyone(client: Any) -> None:
    client.settings["allowed_origins"] = ("*",)
    response = client.get("/v1/models", headers={"Origin": "https://any.example"})
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("a.localhost", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("192.168.1.2", False), ("localhost.x", False),
    ],
)  # fmt: skip
def test_is_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 9}, "http://127.0.0.1:9"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"ssl_certfile": "c", "root_path": "/llm"}, "https://127.0.0.1:8000/llm"),
        ({"uds": "/run/o.sock"}, "unix:/run/o.sock"),
    ],
)
def test_url(settings: Any, url: str) -> None:
    assert ServerSettings(**settings).url == url


@pytest.mark.parametrize("root_path", ["/llm", "llm/"])
def test_a_prefix_works_stripped_or_not(client: Any, root_path: str) -> None:
    client.settings.update(root_path=root_path, api_keys=("k",))
    for prefix in ("", "/llm"):
        assert client.get(f"{prefix}/health").status_code == 200
        assert client.get(f"{prefix}/v1/models").status_code == 401
        assert client.get(f"{prefix}/v1/models", headers={"x-api-key": "k"}).status_code == 200
        spec = client.get(f"{prefix}/openapi.json", headers={"x-api-key": "k"}).json()
        assert spec["servers"] == [{"url": "/llm"}]
    assert client.get("/llmhealth").status_code == 401
    assert client.get("/llm/llm/health").status_code == 401


def test_root_path(client: Any) -> None:
    from octavo.server.errors import route_path

    assert route_path({"path": "/llm/health", "root_path": "/llm"}) == "/health"
    assert route_path({"path": "/llmhealth", "root_path": "/llm"}) == "/llmhealth"
