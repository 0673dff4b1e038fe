"""What a run leaves on disk.

``config.yaml`` resolved; ``rounds.jsonl`` one object a round; ``summary.json``; the model with all
that is needed to rebuild it; ``learning_curve.png``. Whole files are written aside and renamed, so
that none is ever half there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.config import Config
from common.errors import UserError

CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
CURVE = "learning_curve.png"
FLOWER_LOG = "flower.log"


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        Made if it is not there.

    Raises
    ------
    UserError
        If it holds a run already, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ROUNDS).touch(exist_ok=False)
        except FileExistsError as error:
            if not self.path.is_dir():
                raise UserError(f"run_dir {self.path} cannot be written: not a folder") from error
            raise UserError(
                f"{self.path} holds a run already; choose another with run_dir=…"
            ) from error
        except OSError as error:
            raise UserError(f"run_dir {self.path} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Give the folder up, for a run that ended before its first round."""
        (self.path / ROUNDS).unlink(missing_ok=True)

    def write_config(self, config: Config) -> None:
        """Write the configuration, resolved."""
        self.write(CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True).encode())

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Append one round, in one write."""
        with (self.path / ROUNDS).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file aside and rename it."""
        target = self.path / name
        aside = target.with_name(f".{name}.part")
        aside.write_bytes(content)
        aside.replace(target)
