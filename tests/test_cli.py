import logging

import pytest
from absl import flags

from m3ddm_jax import cli


def ended(capsys, main, arguments=(), values=()):
    """Exit status and the lines of standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.call("name", main, arguments, list(values))
    return stop.value.code, capsys.readouterr().err.splitlines()


def raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("two\n  lines"), "name: two lines"),
        (FileNotFoundError(2, "No such file", "x"), "name: [Errno 2] No such file: 'x'"),
        (FloatingPointError("step 3"), "name: step 3"),
        (ValueError(), "name: ValueError"),
    ],
)
def test_failures_are_one_line_and_status_2(capsys, error, line):
    assert ended(capsys, raiser(error)) == (2, [line])


def test_an_interrupted_command_says_so(capsys):
    assert ended(capsys, raiser(KeyboardInterrupt())) == (130, ["name: interrupted"])


def test_other_errors_keep_their_trace():
    with pytest.raises(KeyError):
        cli.call("name", raiser(KeyError("bug")), (), [])


def test_arguments_are_counted_and_given():
    given = []
    cli.call("name", lambda a, b: given.append((a, b)), ("IN", "OUT"), ["x", "y"])
    assert given == [("x", "y")]


def test_a_number_of_arguments_that_does_not_fit_is_refused(capsys):
    assert ended(capsys, print, ("IN", "OUT"), ["x"]) == (2, ["name: IN OUT expected, found x"])
    assert ended(capsys, print, (), ["x"]) == (2, ["name: no argument expected, found x"])


def test_arguments_in_messages_become_flags(capsys, monkeypatch):
    values = flags.FlagValues()
    for name in ("aspect", "pixel_format", "set"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    message = "`aspect`, `pixel_format` and `settings` are flags, `other` and `python -m x` are none"
    expected = "name: --aspect, --pixel-format and --set are flags, `other` and `python -m x` are none"
    assert ended(capsys, raiser(ValueError(message))) == (2, [expected])


def test_what_the_library_logs_is_a_line_each(capsys):
    logger = logging.getLogger("m3ddm_jax.pipelines.some")

    def main():
        logger.warning("%s: left out", "sound")
        logger.info("too much detail")

    cli.call("name", main, (), [])
    assert capsys.readouterr().err == "name: sound: left out\n"
    handlers = logging.getLogger("m3ddm_jax").handlers
    cli.call("name", main, (), [])
    assert logging.getLogger("m3ddm_jax").handlers == handlers and logging.getLogger("m3ddm_jax").propagate
