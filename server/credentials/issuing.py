"""What credentials a federation lacks, and what is to be said of those that it has.

Everything is read and checked before the first file is written, so that a mistake leaves the folder
as it was. A key is written before what is made from it, and read after it: a run that was cut short
is completed by the next, and one at the same time never finds the second without the first.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509

from common.clients import ClientKey, check_modality_name
from common.config.credentials import CredentialsConfig, Renew
from common.errors import UserError
from server.credentials.certificates import (
    PublicKey,
    SigningKey,
    certificate_pem,
    hosts_of,
    is_authority,
    key_pem,
    make_authority,
    new_key,
    parse_host,
    read_certificate,
    read_key,
    read_site_key,
    read_site_public_key,
    server_public_key,
    sign_server,
    signed_by,
    site_key,
    site_public_key,
)
from server.credentials.folder import CredentialFolder

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server/server.crt", "server/server.key"

#: Where the SuperLink's own processes reach it when it listens on all addresses.
LOOPBACK = "127.0.0.1"

RENEW = "renew=server"

#: A certificate that expires within this time is warned of.
SOON = timedelta(days=30)


@dataclass(frozen=True)
class Issued:
    """What a run of `utmp-credentials` left.

    Attributes
    ----------
    wrote, kept
        Names of files in the folder.
    former
        Where the certificate that was renewed is now.
    authority, server
        The certificates that hold from now.
    hosts
        What the server's is valid for.
    new_clients
        Those that got a key.
    warnings
        One line each.
    """

    wrote: tuple[str, ...]
    kept: tuple[str, ...]
    former: str | None
    authority: x509.Certificate
    server: x509.Certificate
    hosts: tuple[str, ...]
    new_clients: tuple[ClientKey, ...]
    warnings: tuple[str, ...]


def issue(config: CredentialsConfig, now: datetime) -> Issued:
    """Write the credentials that are missing.

    Parameters
    ----------
    config
        Whose, for how long, and where.
    now
        The time, in UTC.

    Raises
    ------
    UserError
        If something does not fit what is there, or cannot be written.
    """
    clients = _clients(config)
    hosts = [parse_host(name) for name in config.host_names]
    draft = _Draft(config, CredentialFolder(str(config.out)), now)
    authority, key = draft.authority()
    server = draft.server(authority, key, hosts)
    new_clients = tuple(client for client in clients if draft.site(client, authority))
    draft.write()
    return Issued(
        tuple(draft.new),
        tuple(sorted(draft.kept)),
        draft.former,
        authority,
        server,
        tuple(str(host.value) for host in hosts_of(server)),
        new_clients,
        tuple(draft.warnings),
    )


def site_folder(client: ClientKey) -> str:
    """Return the folder of what one site is handed."""
    return f"sites/{client}"


def _clients(config: CredentialsConfig) -> list[ClientKey]:
    for modality in config.clients:
        check_modality_name(modality)
    return [
        ClientKey(modality, part)
        for modality, count in config.clients.items()
        for part in range(count)
    ]


@dataclass
class _Draft:
    """What is to be written, in order; and what is there and stays."""

    config: CredentialsConfig
    folder: CredentialFolder
    now: datetime
    new: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    former: str | None = None

    def write(self) -> None:
        """Write it."""
        for name, (content, private) in self.new.items():
            if name == SERVER and self.former:
                self.folder.replace(name, content, self.former)
            else:
                self.folder.create(name, content, private=private)

    def authority(self) -> tuple[x509.Certificate, SigningKey | None]:
        """Return the authority's certificate, and its key unless that was taken away."""
        copies = self.folder.find(f"server/{CA}") + self.folder.find(f"sites/*/{CA}")
        content, key_content = self._present(CA), self._present(CA_KEY)
        key = None if key_content is None else read_key(self._path(CA_KEY), key_content)
        if content is None:
            if copies:
                raise UserError(
                    f"{self._path(CA)} is missing and {copies[0]} is there; copy it back"
                )
            key = key or self._add_key(CA_KEY)
            certificate = make_authority(key, self.config.ca_days, self.now)
            self._add(CA, certificate_pem(certificate))
        else:
            certificate = read_certificate(self._path(CA), content)
            if not is_authority(certificate):
                raise UserError(f"{self._path(CA)} is not the certificate of an authority")
            if key and key.public_key() != certificate.public_key():
                raise UserError(
                    f"{self._path(CA_KEY)} does not belong to {CA} beside it; put back the key or "
                    "the certificate that does, or choose another folder with out=…"
                )
        self._warn_of_end(CA, certificate, "make a new folder of credentials and hand it out anew")
        return certificate, key

    def server(
        self,
        authority: x509.Certificate,
        authority_key: SigningKey | None,
        hosts: list[x509.GeneralName],
    ) -> x509.Certificate:
        """Return the server's certificate: the one that is there, or a new one."""
        renewed = self.config.renew is Renew.server
        content = self.folder.read(SERVER) if renewed else self._present(SERVER)
        key_content = self._present(SERVER_KEY)
        key = None if key_content is None else read_key(self._path(SERVER_KEY), key_content)
        present = None if content is None else read_certificate(self._path(SERVER), content)
        if present is not None:
            self._check_server(present, key, authority)
        if present is None or renewed:
            certificate = self._sign(authority, authority_key, present, key, hosts)
        else:
            certificate = present
            self._warn_of_hosts(present, hosts)
        self._warn_of_end(SERVER, certificate, f"sign a new one with {RENEW}")
        self._add_copy("server", authority)
        return certificate

    def site(self, client: ClientKey, authority: x509.Certificate) -> bool:
        """Complete what one site is handed; return whether it gets a new key."""
        path = f"{site_folder(client)}/{client}"
        public_content, content = self._present(f"{path}.pub"), self._present(f"{path}.key")
        key = None if content is None else read_site_key(self._path(f"{path}.key"), content)
        if public_content is not None:
            # Its key may be at the site alone by now.
            public = read_site_public_key(self._path(f"{path}.pub"), public_content)
            if key and key.public_key() != public:
                raise UserError(f"{self._path(path)}.key does not belong to {client}.pub beside it")
        else:
            if key is None:
                key = new_key()
                self._add(f"{path}.key", site_key(key), private=True)
            self._add(f"{path}.pub", site_public_key(key.public_key(), str(client)))
        self._add_copy(site_folder(client), authority)
        return public_content is None

    def _sign(
        self,
        authority: x509.Certificate,
        authority_key: SigningKey | None,
        present: x509.Certificate | None,
        key: SigningKey | None,
        hosts: list[x509.GeneralName],
    ) -> x509.Certificate:
        if authority_key is None:
            raise UserError(
                f"{self._path(CA_KEY)} is not there, and the server's certificate must be signed "
                "with it; put it back for this run"
            )
        if authority.not_valid_after_utc <= self.now:
            raise UserError(
                f"{self._path(CA)} has expired and can sign nothing; make new credentials in "
                "another folder with out=…"
            )
        named = [*(hosts or (hosts_of(present) if present else []))]
        if not named:
            raise UserError(
                "hosts is required; give it as hosts=…: the names and addresses by which sites "
                "reach the coordinator"
            )
        if present:
            self.former = f"{SERVER}.{self.now:%Y-%m-%d}.{present.serial_number:x}"[:-32]
        certificate = sign_server(
            authority,
            authority_key,
            self._server_public_key(key, present),
            list(dict.fromkeys([*named, parse_host(LOOPBACK)])),
            self.config.days,
            self.now,
        )
        self._add(SERVER, certificate_pem(certificate))
        return certificate

    def _server_public_key(
        self, key: SigningKey | None, present: x509.Certificate | None
    ) -> PublicKey:
        """Return the key that stays, or a new one."""
        if key is None and present is not None:
            # The private one may be at the coordinator alone by now.
            return server_public_key(self._path(SERVER), present)
        return (key or self._add_key(SERVER_KEY)).public_key()

    def _check_server(
        self, present: x509.Certificate, key: SigningKey | None, authority: x509.Certificate
    ) -> None:
        if not signed_by(present, authority):
            raise self._of_another_authority(SERVER)
        if key and key.public_key() != present.public_key():
            raise UserError(
                f"{self._path(SERVER_KEY)} does not belong to server.crt beside it; put back the "
                "key or the certificate that does"
            )

    def _warn_of_hosts(self, present: x509.Certificate, hosts: list[x509.GeneralName]) -> None:
        known = hosts_of(present)
        lacking = ", ".join(str(host.value) for host in hosts if host not in known)
        if lacking:
            shown = ", ".join(str(host.value) for host in known)
            self.warnings.append(
                f"{self._path(SERVER)} is not valid for {lacking}, only for {shown}; sign a new "
                f"one with {RENEW}"
            )

    def _warn_of_end(self, name: str, certificate: x509.Certificate, remedy: str) -> None:
        end = certificate.not_valid_after_utc
        if end > self.now + SOON:
            return
        state = "has expired" if end <= self.now else "expires"
        self.warnings.append(f"{self._path(name)} {state} on {end:%Y-%m-%d}; {remedy}")

    def _add_copy(self, folder: str, authority: x509.Certificate) -> None:
        """Add the authority's certificate to what is handed out."""
        name = f"{folder}/{CA}"
        content = self._present(name)
        if content is None:
            self._add(name, certificate_pem(authority))
        elif read_certificate(self._path(name), content) != authority:
            raise self._of_another_authority(name)

    def _of_another_authority(self, name: str) -> UserError:
        if CA in self.new:
            return UserError(
                f"{self._path(name)} is there, and {CA} was not; put that back, or if it was "
                "written by another run meanwhile, run this again"
            )
        return UserError(
            f"{self._path(name)} is of another authority than {self._path(CA)}; put back the "
            "one of that, or choose another folder with out=…"
        )

    def _add_key(self, name: str) -> SigningKey:
        key = new_key()
        self._add(name, key_pem(key), private=True)
        return key

    def _add(self, name: str, content: bytes, *, private: bool = False) -> None:
        self.new[name] = (content, private)

    def _present(self, name: str) -> bytes | None:
        """Return what a file holds, and note that it is kept."""
        content = self.folder.read(name)
        if content is not None:
            self.kept.append(name)
        return content

    def _path(self, name: str) -> str:
        return str(self.folder.path / name)
