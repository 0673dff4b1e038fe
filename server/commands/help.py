"""`--help`: what a command does, two examples, and its settings, all as its YAML file says them."""

import re
from importlib.resources import files
from textwrap import fill
from typing import Any

import yaml

from common.config import Settings

#: What every command takes besides settings.
_OPTIONS = """\
Options:
  --multirun     several values for a setting, as in seed=1,2,3: one job for each
  --cfg job      print all settings and their values, and do nothing else
  --hydra-help   further options, of Hydra"""


def help_text(schema: type[Settings]) -> str:
    """Return what `--help` prints of the command that has these settings."""
    text = files(schema.folder).joinpath(f"{schema.file}.yaml").read_text(encoding="utf-8")
    about, _, rest = text.partition("\ndefaults:")
    # Hydra's own parts: up to the next line that is not indented.
    body = re.sub(r"\A(?:\n? .*)*|^hydra:(?:\n? .*)*", "", rest, flags=re.MULTILINE).strip()
    parts = [re.sub(r"^# ?", "", about, flags=re.MULTILINE).strip()]
    parts.append(f"Settings, given as NAME=VALUE; these are the defaults:\n\n{body}")
    if groups := _groups(yaml.safe_load(text)["defaults"], schema.folder):
        parts.append("\n".join(["Groups of settings, given as GROUP=CHOICE:\n", *groups]))
    return "\n\n".join([*parts, _OPTIONS])


def _groups(defaults: list[Any], folder: str) -> list[str]:
    """Return a line for each group that has files of its own: its default and the others."""
    lines = []
    for entry in defaults:
        [(name, default)] = entry.items() if isinstance(entry, dict) else [("", None)]
        group = files(folder).joinpath(name)
        if not name or not group.is_dir():
            continue
        names = sorted(file.name.removesuffix(".yaml") for file in group.iterdir())
        others = [choice for choice in names if choice != default]
        line = ", ".join([f"{default} (the default)", *others] if default else others)
        lines.append(fill(line, 96, initial_indent=f"  {name}=", subsequent_indent="      "))
    return lines
