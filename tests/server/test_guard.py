"""Keys, Host and Origin, CORS: closed unless opened, on every route that there is."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.server.guard import OPEN_PATHS, Keys
from octavo.server.settings import ServerSettings, is_loopback

KEYS = ("alpha", "beta-ключ")


def all_routes(client: Any) -> list[tuple[str, str]]:
    """(method, path) of everything that is mounted."""
    found = []
    for route in client.app().routes:
        path = route.path.replace("{name:path}", "pocket")
        found += [(method, path) for method in route.methods]
    return sorted(found)


def test_every_route_needs_the_key_but_liveness(client: Any) -> None:
    client.settings["api_keys"] = KEYS
    routes = all_routes(client)
    assert len(routes) > 15
    for method, path in routes:
        response = client.send(method, path)
        if path in OPEN_PATHS:
            assert response.status_code == 200, path
            continue
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert "API key" in str(response.json()["error"])  # in the shape of the route's clients


def test_open_paths_are_only_liveness() -> None:
    assert {"/health", "/ping"} == OPEN_PATHS


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
