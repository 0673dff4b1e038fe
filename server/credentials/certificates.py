"""X.509 and SSH: the federation's own authority, its server's certificate, the sites' keys.

Certificates have the extensions that strict verifiers ask for (RFC 5280; Python's
``VERIFY_X509_STRICT``). Keys are on P-384, the curve on which Flower makes its own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

#: The clocks of sites may be behind by this much.
CLOCK_SKEW = timedelta(days=1)

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(ec.SECP384R1())


def parse_host(text: str) -> x509.GeneralName:
    """Return a DNS name or an IP address.

    Raises `UserError` if it is neither, or an address at which nobody reaches a server.
    """
    try:
        address = ip_address(text)
    except ValueError:
        labels = text.lower().split(".")
        named = all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
        if not named or len(text) > 253:
            raise UserError(
                f"hosts: {text!r} is neither a DNS name nor an IP address; give it as in "
                "superlink.example.org, 10.0.0.5 or ::1, without a port"
            ) from None
        return x509.DNSName(text.lower())
    if address.is_unspecified or "%" in text:
        raise UserError(f"hosts: {text} is not an address by which a site reaches the coordinator")
    return x509.IPAddress(address)


def make_authority(key: SigningKey, days: int, now: datetime) -> x509.Certificate:
    """Make the certificate of an authority, valid for some days and signed with its own key."""
    extensions = (
        x509.BasicConstraints(ca=True, path_length=0),
        _usage("key_cert_sign", "crl_sign"),
    )
    # With a part of the key in the name, authorities of several federations can be told apart.
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
    name = f"HA-Fedformer authority {identifier[:12]}"
    return _certificate(name, key.public_key(), key, None, days, now, *extensions)


def sign_server(
    authority: x509.Certificate,
    key: SigningKey,
    public_key: PublicKey,
    hosts: Sequence[x509.GeneralName],
    days: int,
    now: datetime,
) -> x509.Certificate:
    """Sign the certificate of a server for some hosts with the authority's private key.

    It is valid for some days, but not longer than its authority.
    """
    extensions = (
        x509.BasicConstraints(ca=False, path_length=None),
        _usage("digital_signature"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName(hosts),
    )
    name = "HA-Fedformer server"
    return _certificate(name, public_key, key, authority, days, now, *extensions)


def hosts_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return the names and addresses for which a certificate is valid."""
    return list(_extension(certificate, x509.SubjectAlternativeName) or [])


def is_authority(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may sign others, and has the identifier that they refer to."""
    constraints = _extension(certificate, x509.BasicConstraints)
    identifier = _extension(certificate, x509.SubjectKeyIdentifier)
    return constraints is not None and constraints.ca and identifier is not None


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> Any:
    """Return the value of an extension; None if there is none."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _usage(*usages: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in usages for name in _USAGES})


def _certificate(
    name: str,
    public_key: PublicKey,
    key: SigningKey,
    issuer: x509.Certificate | None,
    days: int,
    now: datetime,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    """Sign a certificate with the key of its issuer; without one, it is its own issuer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    own = x509.SubjectKeyIdentifier.from_public_key(public_key)
    until = now + timedelta(days=days)
    issuer_name, identifier = subject, own
    if issuer:
        issuer_name, identifier = issuer.subject, _extension(issuer, x509.SubjectKeyIdentifier)
        until = min(until, issuer.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )
    of_issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    for extension in (own, of_issuer, *extensions):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA384())


@dataclass(frozen=True)
class FileKind:
    """A kind of file: what it holds, what loads that, and which public key belongs to it."""

    form: str
    load: Callable[[bytes], Any]
    key: Any = PublicKey
    key_name: str = "elliptic curve or RSA"

    def read(self, path: object, content: bytes) -> Any:
        """Return what the file holds; raise `UserError` if that is not of this kind."""
        try:
            loaded = self.load(content)
            # A certificate parses its extensions at the first access.
            getattr(loaded, "extensions", None)
            key = loaded.public_key() if hasattr(loaded, "public_key") else loaded
        except TypeError as error:
            message = f"{path} is locked with a passphrase; unlock it for this run"
            raise UserError(message) from error
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise UserError(f"{path} is not {self.form} format") from error
        if not isinstance(key, self.key):
            raise UserError(f"{path} is a key of another kind; expected {self.key_name}")
        return loaded


CERTIFICATE = FileKind("a certificate in PEM", x509.load_pem_x509_certificate)
KEY = FileKind("a private key in PEM", partial(pem.load_pem_private_key, password=None))
# OpenSSH has elliptic curves of NIST only, as Flower does.
_SITE = (ec.EllipticCurvePublicKey, "one on a NIST curve")
SITE_KEY = FileKind(
    "a private key in OpenSSH", partial(pem.load_ssh_private_key, password=None), *_SITE
)
SITE_PUBLIC_KEY = FileKind("a public key in OpenSSH", pem.load_ssh_public_key, *_SITE)
