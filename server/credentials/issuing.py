"""Which credentials a federation lacks, and warnings about those that it has.

Everything is read and checked before the first file is written, so that a mistake leaves the folder
as it was. A key is written before the files made from it, and read after them: a run that was cut
short is completed by the next, and one at the same time never finds the second without the first.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem

from common.clients import ClientKey, check_modality_name
from common.config import CredentialsConfig, Renew
from common.errors import UserError
from server.credentials.certificates import (
    CERTIFICATE,
    KEY,
    SITE_KEY,
    SITE_PUBLIC_KEY,
    SigningKey,
    hosts_of,
    is_authority,
    is_signed_by,
    make_authority,
    new_key,
    parse_host,
    sign_server,
)
from server.credentials.folder import CredentialFolder

CA, CA_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server/server.crt", "server/server.key"

#: At this address its own processes reach a SuperLink that listens on all addresses.
LOOPBACK = "127.0.0.1"

RENEW = "renew=server"

#: A certificate that expires within this time gets a warning.
SOON = timedelta(days=30)


@dataclass
class Credentials:
    """The files of a federation: those that are there and stay, and those to be written."""

    config: CredentialsConfig
    folder: CredentialFolder
    now: datetime
    #: Name of each file to be written to its content, in order.
    new: dict[str, bytes] = field(default_factory=dict)
    #: The name under which a renewed certificate is kept.
    former: str | None = None
    new_clients: list[ClientKey] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    authority: x509.Certificate = field(init=False)
    #: None where it was taken away.
    authority_key: SigningKey | None = field(init=False)
    server: x509.Certificate = field(init=False)

    @property
    def hosts(self) -> list[str]:
        """The names and addresses for which the server's certificate is valid."""
        return [str(host.value) for host in hosts_of(self.server)]

    def prepare(self) -> None:
        """Read and check what is there, and make what is missing."""
        for modality in self.config.clients:
            check_modality_name(modality)
        hosts = [parse_host(name) for name in self.config.host_names]
        self._prepare_authority()
        self._prepare_server(hosts)
        for modality, count in self.config.clients.items():
            for part in range(count):
                self._prepare_site(ClientKey(modality, part))

    def _prepare_authority(self) -> None:
        """Set the authority and its key: what is there, or new ones."""
        copies = self.folder.find(f"*/**/{CA}")
        certificate, key = self.folder.read(CA, CERTIFICATE), self.folder.read(CA_KEY, KEY)
        if certificate is None:
            if copies:
                raise UserError(
                    f"{self._path(CA)} is missing and {copies[0]} is there; copy it back"
                )
            key = key or self._add_key(CA_KEY)
            certificate = make_authority(key, self.config.ca_days, self.now)
            self._add(CA, certificate)
        elif not is_authority(certificate):
            raise UserError(f"{self._path(CA)} is not the certificate of an authority")
        self._check_pair(CA_KEY, key, CA, certificate.public_key())
        self._warn_of_end(CA, certificate, "make a new folder of credentials and hand it out anew")
        self.authority, self.authority_key = certificate, key

    def _prepare_server(self, hosts: list[x509.GeneralName]) -> None:
        """Set the server's certificate: the one that is there, or a new one."""
        present, key = self.folder.read(SERVER, CERTIFICATE), self.folder.read(SERVER_KEY, KEY)
        if present:
            if not is_signed_by(present, self.authority):
                raise self._of_another_authority(SERVER)
            self._check_pair(SERVER_KEY, key, SERVER, present.public_key())
        if present is None or self.config.renew is Renew.server:
            self._sign_server(present, key, hosts)
        else:
            self.server = present
            known = hosts_of(present)
            if lacking := [str(host.value) for host in hosts if host not in known]:
                self.warnings.append(
                    f"{self._path(SERVER)} is not valid for {', '.join(lacking)}, only for "
                    f"{', '.join(self.hosts)}; sign a new one with {RENEW}"
                )
        self._warn_of_end(SERVER, self.server, f"sign a new one with {RENEW}")
        self._add_copy("server")

    def _sign_server(
        self,
        present: x509.Certificate | None,
        key: SigningKey | None,
        hosts: list[x509.GeneralName],
    ) -> None:
        """Set a new certificate of the server, and the name of the present one's copy."""
        if self.authority_key is None:
            raise UserError(
                f"{self._path(CA_KEY)} is not there, and the server's certificate must be signed "
                "with it; put it back for this run"
            )
        if self.authority.not_valid_after_utc <= self.now:
            raise UserError(
                f"{self._path(CA)} has expired and can sign nothing; make new credentials in "
                "another folder with out=…"
            )
        hosts = hosts or (hosts_of(present) if present else [])
        if not hosts:
            raise UserError(
                "hosts is required; give it as hosts=…: the names and addresses by which sites "
                "reach the coordinator"
            )
        hosts = list(dict.fromkeys([*hosts, parse_host(LOOPBACK)]))
        # The server's private key may be at the coordinator alone by now.
        public: Any = (present or key or self._add_key(SERVER_KEY)).public_key()
        days, signing = self.config.days, self.authority_key
        self.server = sign_server(self.authority, signing, public, hosts, days, self.now)
        self._add(SERVER, self.server)
        if present:
            serial = f"{present.serial_number:08x}"[-8:]
            self.former = f"{SERVER}.{self.now:%Y-%m-%d}.{serial}"
            self.folder.kept.remove(SERVER)

    def _prepare_site(self, client: ClientKey) -> None:
        """Complete the folder that one site is handed."""
        path = f"sites/{client}/{client}"
        public = self.folder.read(f"{path}.pub", SITE_PUBLIC_KEY)
        key = self.folder.read(f"{path}.key", SITE_KEY)
        if public is None:
            key = key or self._add_key(f"{path}.key", pem.PrivateFormat.OpenSSH)
            line = key.public_key().public_bytes(pem.Encoding.OpenSSH, pem.PublicFormat.OpenSSH)
            self.new[f"{path}.pub"] = line + f" {client}\n".encode()
            self.new_clients.append(client)
        else:
            # Without its key beside it, the key may be at the site alone by now.
            self._check_pair(f"{path}.key", key, f"{path}.pub", public)
        self._add_copy(f"sites/{client}")

    def _check_pair(self, name: str, key: Any, other: str, public: object) -> None:
        if key and key.public_key() != public:
            raise UserError(
                f"{self._path(name)} does not belong to {PurePath(other).name} beside it; put back "
                "the one that does, or choose another folder with out=…"
            )

    def _warn_of_end(self, name: str, certificate: x509.Certificate, remedy: str) -> None:
        end = certificate.not_valid_after_utc
        if end <= self.now + SOON:
            state = "has expired" if end <= self.now else "expires"
            self.warnings.append(f"{self._path(name)} {state} on {end:%Y-%m-%d}; {remedy}")

    def _add_copy(self, folder: str) -> None:
        """Add the authority's certificate to a folder that is handed out."""
        copy = self.folder.read(f"{folder}/{CA}", CERTIFICATE)
        if copy is None:
            self._add(f"{folder}/{CA}", self.authority)
        elif copy != self.authority:
            raise self._of_another_authority(f"{folder}/{CA}")

    def _of_another_authority(self, name: str) -> UserError:
        return UserError(
            f"{self._path(name)} is of another authority than {self._path(CA)}; put back its own "
            f"{CA}, or choose another folder with out=…; if it was written by another run "
            "meanwhile, run this again"
        )

    def _add(self, name: str, certificate: x509.Certificate) -> None:
        self.new[name] = certificate.public_bytes(pem.Encoding.PEM)

    def _add_key(self, name: str, form: pem.PrivateFormat = pem.PrivateFormat.PKCS8) -> SigningKey:
        key = new_key()
        self.new[name] = key.private_bytes(pem.Encoding.PEM, form, pem.NoEncryption())
        return key

    def _path(self, name: str) -> str:
        return str(self.folder.path / name)


def issue(config: CredentialsConfig, now: datetime) -> Credentials:
    """Write the credentials that are missing at a time in UTC.

    Raises `UserError` if something does not fit the files that are there, or cannot be read or
    written.
    """
    credentials = Credentials(config, CredentialFolder(str(config.out)), now)
    credentials.prepare()
    for name, content in credentials.new.items():
        credentials.folder.write(name, content, credentials.former if name == SERVER else None)
    return credentials
