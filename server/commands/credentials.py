"""`utmp-credentials`: the keys and certificates of a federation over TLS."""

from datetime import UTC, datetime

from common.config import CredentialsConfig
from server.commands.command import hydra_command


@hydra_command(CredentialsConfig)
def main(config: CredentialsConfig) -> None:
    """Write the credentials that are missing."""
    from server.credentials.console import show_issued
    from server.credentials.issuing import issue
    from server.terminal import Terminal

    show_issued(issue(config, datetime.now(UTC)), Terminal())
