"""What commands share on their command lines: settings, the files of a point."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepflow.errors import DeepFlowError

SETTINGS = """PATH is a key below hardware, model, parallelism or backend, as in a sweep file;
VALUE is written as in YAML, with a unit where the key has one:
  --set parallelism.tensor=8 --set model.global_batch_size=1024
  --set "hardware.tech_param.DRAM.bandwidth=4.8 TB/s"
"""


def command(
    commands: Any, name: str, run: Any, purpose: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A parser of its own below ``commands`` for the command that ``run`` does."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_point_options(parser: argparse.ArgumentParser) -> None:
    """The options that ``load_point`` reads."""
    parser.add_argument("--hardware", metavar="FILE", required=True, help="hardware YAML")
    parser.add_argument("--model", metavar="FILE", required=True, help="model YAML")
    add_framework(parser, "framework YAML, which changes what the hardware file says of software")
    add_settings(parser)
    parser.add_argument("--backend", choices=("analytical", "astra"), help="what times the network")


def add_framework(parser: argparse.ArgumentParser, purpose: str) -> None:
    """``--framework``."""
    parser.add_argument("--framework", metavar="FILE", help=purpose)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """``--set``, as often as wanted."""
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        dest="settings",
        action="append",
        default=[],
        type=path_and_value,
        help="change one key; may be given again",
    )


def path_and_value(text: str) -> str:
    """The type of an argument PATH=VALUE."""
    if not text.partition("=")[0].strip() or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH=VALUE")
    return text


def file_ending(*endings: str) -> Callable[[str], str]:
    """The type of an argument that is a file to write, whose ending says the format."""

    def checked(text: str) -> str:
        if not text.endswith(endings) or Path(text).name in endings:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(endings)}")
        return text

    return checked


picture = file_ending(".svg", ".png", ".pdf")
"""The type of an argument that is a picture to draw."""


def load_point(options: argparse.Namespace, option: str = "--set") -> tuple[Any, Any, Any]:
    """(hardware, model, canonical changes): the files as they are, and what options change.

    ``option`` is what errors call the settings.
    """
    from deepflow.config import load_framework_config, load_hardware_config, load_model_config
    from deepflow.sweep.settings import Setting, canonical_settings, parse_setting

    hardware = load_hardware_config(options.hardware)
    if options.framework is not None:
        hardware = load_framework_config(options.framework).applied_to(hardware)
    model = load_model_config(options.model)
    settings = [parse_setting(text) for text in options.settings]
    if options.backend is not None:
        settings.append(Setting("backend.model", options.backend, "--backend"))
    return hardware, model, canonical_settings(settings, hardware, model, option)


def changed(what: str) -> DeepFlowError:
    """The error of a step of a workflow whose input is not what it was."""
    return DeepFlowError(f"{what} changed since the workflow was started; start it again")
