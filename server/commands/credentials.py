"""`utmp-credentials`: the keys and certificates of a federation over TLS."""

from common.config import CredentialsConfig
from server.commands.command import hydra_command


@hydra_command(CredentialsConfig)
def main(config: CredentialsConfig) -> None:
    """Write the credentials that are missing."""
    from server.credentials.certificates import utc_now
    from server.credentials.console import show_issued
    from server.credentials.issuing import issue
    from server.terminal import Terminal

    show_issued(issue(config, utc_now()), str(config.out), Terminal())
