"""``deepflow completion``: the TAB key in a shell knows commands, options, files and keys.

The shell asks ``deepflow`` itself (argcomplete), so what it offers is what this version knows: for
``--set`` the paths of every key, from the declarations of the configuration, and the choices of a
key that has some.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

from deepflow.command_line import command

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
ASKED = "_ARGCOMPLETE"
"""Set in the environment by a shell that wants to complete a command line."""

_EPILOG = """examples:
  eval "$(deepflow completion bash)"                 # for this shell; put it into ~/.bashrc
  eval "$(deepflow completion zsh)"                  # into ~/.zshrc, after compinit
  deepflow completion fish > ~/.config/fish/completions/deepflow.fish
"""


def add_completion_command(commands: Any) -> None:
    """Adds ``completion`` to the ``deepflow`` command."""
    completion = command(
        commands, "completion", _completion, "print what teaches your shell to complete", _EPILOG
    )
    completion.add_argument("shell", choices=SHELLS)


def _completion(options: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["deepflow"], True, options.shell))


def complete(parser_for: Callable[[str], argparse.ArgumentParser]) -> None:
    """Answers the shell and ends the process; ``parser_for`` the command on its line."""
    import argcomplete

    line = os.environ.get("COMP_LINE", "")
    words = _words(line[: int(os.environ.get("COMP_POINT", len(line)))])
    parser = parser_for(words[1] if len(words) > 1 else "")
    _describe(parser)
    argcomplete.autocomplete(parser)


def _words(line: str) -> list[str]:
    import shlex

    try:
        return shlex.split(line)
    except ValueError:  # A quotation that is still open.
        return line.split()


def _describe(parser: argparse.ArgumentParser) -> None:
    """Tells ``parser`` and those below it what the values of their options are."""
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _describe(below)
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        completer: Any = None
        if action.dest == "settings":
            completer = complete_setting
        elif metavar == "DIR":
            completer = DirectoriesCompleter()
        elif metavar.endswith(".yaml") or action.dest in ("hardware", "model", "framework"):
            completer = FilesCompleter(("yaml", "yml"))
        elif metavar.endswith(".csv"):
            completer = FilesCompleter(("csv", "csv.gz", "gz"))
        if completer is not None:
            # The attribute that argcomplete looks for.
            action.completer = completer  # type: ignore[attr-defined]


def complete_setting(prefix: str, **_: object) -> list[str]:
    """What may follow ``prefix`` of a PATH=VALUE: paths with ``=``, or the choices of a key."""
    path, equals, value = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name in dict(_paths()) if name.startswith(prefix)]
    return [
        f"{path}={choice}"
        for name, choices in _paths()
        if name == path
        for choice in choices
        if choice.startswith(value)
    ]


def _paths() -> Iterator[tuple[str, list[str]]]:
    """(path, choices as in YAML) of every key that can be set."""
    from deepflow.config.hardware import ExecutionBackend, HardwareConfig, Parallelism
    from deepflow.config.model import MODEL_MODES

    yield from _below("parallelism", Parallelism)
    yield from _below("backend", ExecutionBackend)
    yield from _below("hardware", HardwareConfig)
    for mode in MODEL_MODES.values():
        yield from _below("model", mode)


def _below(path: str, section: type[Any]) -> Iterator[tuple[str, list[str]]]:
    from deepflow.config.schema import keys_of

    for key in keys_of(section):
        place = f"{path}.{key.written}"
        if key.section is not None:
            yield from _below(place, key.section)
            continue
        choices = [str(choice) for choice in key.option.choices or ()]
        if bool in key.kinds:
            choices = ["true", "false"]
        yield place, choices
