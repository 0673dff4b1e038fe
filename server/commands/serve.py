"""`utmp-serve`: a trained model that answers over HTTP, and a page to try it."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.config import ServeConfig, check_token
from common.errors import UserError, reason
from server.commands.command import hydra_command

if TYPE_CHECKING:
    from server.terminal import Terminal


@hydra_command(ServeConfig)
def main(config: ServeConfig) -> None:
    """Serve a model until Ctrl-C."""
    token = read_token(config)
    import torch

    from common.training import choose_device
    from server.prediction.predictor import Predictor
    from server.service.app import make_app
    from server.service.examples import Examples, load_examples
    from server.service.listening import address_of, check_certificate, listen, run
    from server.terminal import Terminal

    terminal = Terminal()
    check_certificate(config)
    torch.set_num_threads(config.threads)
    predictor = Predictor.load(str(config.model), choose_device(config.device, "device"))
    predictor.names(config.labels)  # checked before anything is served
    try:
        examples = load_examples(config, predictor)
    except UserError as error:
        if config.examples != "auto":
            raise
        # The data of the run are gone: there is nothing to pick on the page.
        terminal.tell(f"no examples to pick: {error}")
        examples = Examples()
    app = make_app(predictor, config, examples, token)
    with listen(config) as listener:
        warn_of_others(config, token, terminal)
        address = address_of(config, listener)
        terminal.tell(f"{config.model} predicts {predictor.task} at {address}; Ctrl-C ends")
        run(app, config, listener)


def read_token(config: ServeConfig) -> str | None:
    """Return the token that callers must give, if any, or raise `UserError`."""
    if config.token_file is None:
        return config.token
    source = f"token_file={config.token_file}"
    try:
        token = Path(config.token_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{source}: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{source}: expected text") from error
    check_token(token, source)
    return token


def warn_of_others(config: ServeConfig, token: str | None, terminal: "Terminal") -> None:
    """Warn of a service that others can reach and use, or overhear."""
    if config.is_local:
        return
    if token is None:
        terminal.warn(
            f"host={config.host} without a token: whoever reaches this machine can use the "
            "model; give token_file=…"
        )
    elif config.ssl_cert is None:
        terminal.warn(
            f"host={config.host} without TLS: the token crosses the network unencrypted; give "
            "ssl_cert=… and ssl_key=…, or put a proxy with TLS in front"
        )
