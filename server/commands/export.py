"""`utmp-export`: a trained model as ONNX files, one for each subset of its modalities."""

from importlib.util import find_spec

from common.config import ExportConfig
from common.errors import UserError
from server.commands.command import hydra_command

#: What makes ONNX files, and what runs them to check them.
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@hydra_command(ExportConfig)
def main(config: ExportConfig) -> None:
    """Export a model."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise UserError(f"utmp-export needs {name}: pip install 'ha-fedformer[export]'")
    from server.export.files import export_model
    from server.terminal import Terminal

    export_model(config, Terminal().tell)
