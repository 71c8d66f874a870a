"""The page of a report: strings are shown as they are, and the page loads and runs nothing."""

from html.parser import HTMLParser
from pathlib import Path

from experiments.report import Block, Picture, Table, html_page

BAD = "<script>alert('&')</script>\" onload='x"


class Page(HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_string_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    blocks: list[Block] = [Table([BAD], [[BAD]], BAD, BAD, alarm="alert"), BAD, Picture(tmp_path / "a.png", BAD)]
    page = Page(html_page(BAD, BAD, blocks, {BAD: BAD}))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name == "onload"]
    assert page.texts.count(BAD) == 11  # title twice, introduction, four of the table, text, caption, name and value
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert picture["alt"] == BAD
    assert picture["src"].startswith("data:image/png;base64,")
    addresses = {attributes.get("src") or attributes.get("href") for _, attributes in page.tags}
    assert addresses == {None, picture["src"]}
    assert "default-src 'none'" in str(page.tags)
