import io

from control.core import welcome
from control.core.welcome import Welcome
from control.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_each_change_is_one_line_and_repeats_are_none() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, {}, clock=clock)
    screen.add("router")
    screen.show("router", "starting")
    screen.show("router", "starting")
    clock.now = 1.5
    screen.show("router", "ready", "http://127.0.0.1:8000")
    assert "router  starting\nrouter  ready     http://127.0.0.1:8000 (1.5 s)\n" == out.getvalue()


def test_on_a_terminal_the_block_is_redrawn_in_place() -> None:
    out = Terminal()
    screen = Screen(out, {"TERM": "xterm"}, clock=Clock())
    screen.add("registry", "router")
    before = len(out.getvalue())
    screen.show("registry", "ready")
    assert out.getvalue()[before:].startswith("\x1b[2A")
    assert 2 == out.getvalue()[before:].count("\n")


def test_a_sentence_goes_above_the_block_and_a_settled_block_is_left_alone() -> None:
    out = Terminal()
    screen = Screen(out, {"TERM": "xterm"}, clock=Clock())
    screen.add("router")
    screen.say("hello")
    assert "\x1b[1A\x1b[Jhello\n" in out.getvalue()
    screen.settle()
    before = len(out.getvalue())
    screen.say("bye")
    assert "bye\n" == out.getvalue()[before:]


def test_no_colour_is_shown_where_it_is_not_wanted() -> None:
    out = Terminal()
    screen = Screen(out, {"TERM": "xterm", "NO_COLOR": "1"}, clock=Clock())
    screen.show("router", "failed")
    assert "\x1b[31m" not in out.getvalue()
    out = Terminal()
    Screen(out, {"TERM": "xterm"}, clock=Clock()).show("router", "failed")
    assert "\x1b[31m" in out.getvalue()


def test_the_final_block_can_be_pasted() -> None:
    told = Welcome(
        command="switchyard",
        base_url="http://127.0.0.1:8000/v1",
        key="sk-sy-key",
        model="sim-chat",
        node="node-1",
        logs=".switchyard/logs",
        engine_logs=".switchyard/node-*/engines",
        ready_s=2.0,
        first_token_s=2.1,
    )
    shown = welcome.render(told)
    for needed in (
        "curl -N http://127.0.0.1:8000/v1/chat/completions -H 'Authorization: Bearer sk-sy-key'",
        'OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="sk-sy-key")',
        "switchyard chat ",
        "switchyard nodes ",
        "switchyard drain node-1",
        "Ctrl-C",
        ".switchyard/logs",
    ):
        assert needed in shown
