"""What every page of ours must be."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tags_of(page):
    """(tag, attributes) of a page that is well-formed and needs no other file."""
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.found}
    assert not [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert "url(" not in page
    assert "@import" not in page
    return tags.found


def pictures_of(page):
    """The SVGs of a page, as XML."""
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
