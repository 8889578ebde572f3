"""The pages: generated parts are what the package says today, links lead somewhere, quotations are true."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tools.docs")


def test_pages_and_links_are_in_order(docs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = docs.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_every_part_stands_in_a_page(docs: ModuleType) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in docs.pages())
    for name in docs.PARTS:
        assert f"<!-- generated: {name} -->" in text


def test_an_old_part_is_made_anew(docs: ModuleType) -> None:
    page = "before\n<!-- generated: x -->\nold\n<!-- /generated -->\nafter\n"
    made = docs.renewed(page, {"x": lambda: "new\n"})
    assert made == "before\n<!-- generated: x -->\n\nnew\n\n<!-- /generated -->\nafter\n"
    assert docs.renewed(made, {"x": lambda: "new\n"}) == made


@pytest.mark.parametrize(
    "page", ["<!-- generated: y -->\n<!-- /generated -->\n", "<!-- generated: x -->\nnever closed\n"]
)
def test_a_wrong_marker_is_refused(docs: ModuleType, page: str) -> None:
    with pytest.raises(ValueError, match=r"no part|not closed"):
        docs.renewed(page, {"x": lambda: "new\n"})


def test_links_that_lead_nowhere_are_named(docs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-with-code) [c](https://example.com) [d](#here)\n\n## Here\n"
        "`[e](in-code.md)`\n[f](gone.md) [g](other.md#gone) [h](../outside.md)\n"
    )
    found = list(docs.broken_links(page, tmp_path))
    assert found == [
        "page.md: gone.md: no such file",
        "page.md: other.md#gone: no such heading",
        "page.md: ../outside.md: outside the repository",
    ]


def test_a_table_escapes_bars(docs: ModuleType) -> None:
    assert docs.table(("a",), [("0-7|8-15",)]).endswith("| 0-7\\|8-15 |\n")


def test_files_that_are_gone_are_named(docs: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`octavo/here.py`, `octavo/gone.py`, `csrc/`")
    (tmp_path / "octavo").mkdir()
    (tmp_path / "octavo" / "here.py").touch()
    assert list(docs.missing_files(page, tmp_path)) == ["page.md: octavo/gone.py: no such file"]


def test_old_quotations_are_named(docs: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = f(\n    1)\n```\n\n```cpp\nint y;\n```\n\n```\nany text\n```\n")
    (tmp_path / "octavo").mkdir()
    (tmp_path / "octavo" / "a.py").write_text("def g():\n    x = f( 1)\n")
    assert list(docs.misquoted(page, tmp_path)) == ["page.md: int y;: not in the source as it is quoted"]
