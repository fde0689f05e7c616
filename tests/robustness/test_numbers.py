"""Every numeric flag of every command, as the parsers themselves have it, with numbers that it may not be."""

import random

import pytest
from robustness.forks import run
from robustness.writers import READERS, WRITERS, argv_of, numeric_flags, parser_of, write_inputs

from dual_head.cli import main

NO_NUMBERS = ("nan", "inf", "-inf", "1e400")
NUMBERS = (*NO_NUMBERS, "9" * 30, "-1", "-5", "0", "0.5", "1e-320", "1e30", "4294967296", "1000000000000000")
# Work that takes as long as it is told to.
ENDLESS = ("--max_steps", "--num_train_epochs", "--samples", "--requests_per_minute")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("name", WRITERS | READERS)
def test_what_is_no_number_is_refused_by_every_flag(name, inputs, tmp_path, capsys):
    argv = argv_of(name, inputs, tmp_path / "out")
    parser = parser_of(argv)
    for flag in numeric_flags(parser):
        value = random.choice(NO_NUMBERS)
        try:
            code = main([*argv, f"{flag}={value}"])
        except SystemExit as end:
            code = end.code
        message = capsys.readouterr().err
        names = [name.strip("-").split(".")[-1] for name in parser._option_string_actions[flag].option_strings]
        assert (code, any(name in message for name in names)) == (2, True), (flag, value, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_any_number_of_any_flag_is_taken_or_refused_in_a_paragraph(inputs, tmp_path):
    """Prints totals and the seed."""
    seed = random.SystemRandom().randrange(10**6)
    rng, ends, trials = random.Random(seed), {}, []
    for name in WRITERS.keys() - {"demo", "ablate", "classify compare"}:
        flags = numeric_flags(parser_of(argv_of(name, inputs, tmp_path)))
        trials += [(name, flag, value) for flag in flags if flag not in ENDLESS for value in NUMBERS]
    for i, (name, flag, value) in enumerate(rng.sample(trials, 300)):
        ended = run([*argv_of(name, inputs, tmp_path / str(i)), f"{flag}={value}"])
        ends[ended.kind] = ends.get(ended.kind, 0) + 1
        assert ended.kind in ("ok", "refused"), (seed, name, flag, value, ended)
    print(f"numbers: {ends}, seed {seed}")
