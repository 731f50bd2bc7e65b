import io

from headrace.progress import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_that_ends_with_its_line():
    out = Terminal()
    show = bar(out)
    show("timing", 1, 4)
    assert out.getvalue().startswith("\rtiming     [######..................] 1 of 4")
    assert "\n" not in out.getvalue()
    show("timing", 4, 4)
    assert out.getvalue().endswith("4 of 4\033[K\n")


def test_elsewhere_each_stage_is_a_line():
    out = io.StringIO()
    show = bar(out)
    for done in range(4):
        show("layers", done, 3)
    show("prepare", 0, 1)
    show("prepare", 1, 1)
    assert out.getvalue() == "layers: 3\nprepare\n"


def test_of_nothing_is_all():
    out = Terminal()
    bar(out)("empty", 0, 0)
    assert "0 of 0" in out.getvalue()
