"""What could move the cursor, recolour, retitle or reorder is shown as text."""

import io
import json
import logging

import pytest
from rich.table import Table
from rich.text import Text

from dual_head.cli import main
from dual_head.cli.generate import show_trace
from dual_head.console.terminal import Terminal, printable, shown
from dual_head.model.trace import TokenTrace

CLEAR, TITLE = "\x1b[2J", "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (f"a{CLEAR}b", r"a\x1b[2Jb"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("\x9b31mred\x9c", r"\x9b31mred\x9c"),
        ("right\rwrong", r"right\rwrong"),
        ("ab\x08c\x7f\x00", r"ab\x08c\x7f\x00"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("half \ud83d", r"half \ud83d"),
        ("lines\nand\ttabs", "lines\nand\ttabs"),
        ("naïve 日本語 🙂 שלום \u200d \\x1b", "naïve 日本語 🙂 שלום \u200d \\x1b"),
    ],
)
def test_control_characters_are_written_as_python_does_and_all_else_stays(text, printed):
    assert printable(text) == printed


def test_what_is_shown_holds_neither_escapes_nor_secrets():
    assert shown(f"{CLEAR} http://a:hunter2@h {TITLE} word", "word") == r"\x1b[2J http://***@h \x1b]0;owned\x07 word"
    assert shown("secret: word99 word99", "word99") == "secret: *** ***"


def printed_by(terminal_options, *things):
    stream = io.StringIO()
    terminal = Terminal(file=stream, width=100, **terminal_options)
    for thing in things:
        terminal.print(thing)
    terminal.rule(f"rule {CLEAR}")
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "color_system": "truecolor"}])
def test_a_console_escapes_texts_and_cells_and_still_colours(options):
    table = Table(f"head {CLEAR}", title=f"title {TITLE}")
    table.add_row(f"cell \r{CLEAR} [red]x[/]")
    out = printed_by(options, table, f"text {TITLE} :smile: [bold]b[/]")
    assert CLEAR not in out
    assert "\x07" not in out
    assert "\r" not in out
    for part in (
        r"head \x1b[2J",
        r"title \x1b]0;owned\x07",
        r"cell \r\x1b[2J [red]x[/]",
        r"rule \x1b[2J",
        ":smile: [bold]b[/]",
    ):
        assert part in out
    if options:
        assert "\x1b[" in printed_by(options, Text("ours", style="red"))


def test_an_error_is_printed_escaped_and_without_the_secrets_of_the_command_line(capsys):
    judged = ["--judge", "rule", "--judge_option", "api_key=abcdefg"]
    assert main(["eval", "world", "--models", f"a={CLEAR}", "--output_dir", "o", *judged]) == 2
    said = capsys.readouterr().err
    assert r"\x1b[2J" in said
    assert CLEAR not in said
    assert main([f"evil{TITLE}", "--hub_token", "abcdefg"]) == 2
    assert r"Unknown command 'evil\x1b]0;owned\x07'" in capsys.readouterr().err
    assert main(["sweep", "abcdefg", "--hub_token", "abcdefg", "--output_dir", "o"]) == 2


@pytest.mark.parametrize("extra", [["--judge_optoin", "api_key=abcdefg"], ["api_key=abcdefg", f"x{CLEAR}"]])
def test_a_parsers_complaint_is_escaped_and_without_secrets(extra, capsys):
    try:
        status = main(["eval", "world", "--models", "a=b", "--output_dir", "o", *extra])
    except SystemExit as end:  # argparse ends by itself
        status = end.code
    text = capsys.readouterr().err
    assert status == 2
    assert "--judge_optoin" in text or r"\x1b[2J" in text
    assert "abcdefg" not in text
    assert CLEAR not in text


def test_a_parsers_complaint_about_a_value_is_escaped(capsys):
    with pytest.raises(SystemExit):
        main(["cache", "--pairs_per_shard", f"many{CLEAR}"])
    text = capsys.readouterr().err
    assert r"many\x1b[2J" in text
    assert CLEAR not in text


def test_a_warning_that_nobody_handles_is_escaped(capsys):
    assert main(["evla"]) == 2
    record = logging.LogRecord("dual_head", logging.WARNING, "", 0, "'%s' is %s", (CLEAR, "http://a:b@h"), None)
    assert logging.lastResort.format(record) == r"'\x1b[2J' is http://***@h"


# ---- what models and folders hold --------------------------------------------------------------------------


class Speaker:
    """A tokenizer that decodes any ids to one text, and names tokens by it."""

    def decode(self, ids, **_options):
        return f"{CLEAR}a\tb" * len(ids)

    def convert_ids_to_tokens(self, _id):
        return f"{CLEAR}\u2581a"


def test_a_trace_shows_the_escapes_of_tokens():
    token = TokenTrace(1, {"g": 0.5}, -1.0, -1.0, 0.0, [(1, 0.1)], [(1, -0.1)])
    text = show_trace([token, token], Speaker()).plain
    assert CLEAR not in text
    assert text.startswith(r"\x1b[2Ja")


def test_a_streamed_reply_keeps_tabs_and_lines_and_shows_escapes(capsys):
    from dual_head.cli.generate import _streamer

    streamer = _streamer(Speaker())
    streamer.on_finalized_text(f"one\ttwo\n{CLEAR}", stream_end=True)
    assert capsys.readouterr().out == "one\ttwo\n\\x1b[2J\n"


def test_what_config_json_holds_is_inspected_escaped(backbone_folder, tmp_path, capsys):
    from dual_head import AlignedModel, RewardHeadConfig

    model = AlignedModel.from_backbone(str(backbone_folder), {"dual_head": RewardHeadConfig(num_heads=2, head_dim=8)})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_name_or_path"] = f"evil{CLEAR}"
    config["training"] = {"dataset": f"[red]{TITLE}"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert r"evil\x1b[2J" in out
    assert r"[red]\x1b]0;owned\x07" in out
    assert "\x1b" not in out
