"""X.509 and SSH: the federation's own authority, its server's certificate, the sites' keys.

Certificates have the extensions that strict verifiers ask for (RFC 5280; Python's
``VERIFY_X509_STRICT``). Keys are on P-384, the curve on which Flower makes its own.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError

E = TypeVar("E", bound=x509.ExtensionType)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

#: The clocks of sites may be behind by this much.
CLOCK_SKEW = timedelta(days=1)

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def utc_now() -> datetime:
    """Return the time in whole seconds, as certificates hold it."""
    return datetime.now(UTC).replace(microsecond=0)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(ec.SECP384R1())


def parse_host(text: str) -> x509.GeneralName:
    """Return a DNS name or an IP address.

    Raises
    ------
    UserError
        If it is neither, or an address on which a server listens but at which nobody reaches it.
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
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # With a part of the key in the name, authorities of several federations can be told apart.
    name = _name(f"HA-Fedformer authority {identifier.digest.hex()[:12]}")
    builder = _builder(key.public_key(), name, name, now, now + timedelta(days=days))
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    return _sign(builder, key, identifier, constraints, _usage("key_cert_sign", "crl_sign"))


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
    until = min(now + timedelta(days=days), authority.not_valid_after_utc)
    name = _name("HA-Fedformer server")
    return _sign(
        _builder(public_key, name, authority.subject, now, until),
        key,
        authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value,
        x509.BasicConstraints(ca=False, path_length=None),
        _usage("digital_signature"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName(hosts),
    )


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


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*usages: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in usages for name in _USAGES})


def _builder(
    public_key: PublicKey, subject: x509.Name, issuer: x509.Name, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public_key)
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder,
    key: SigningKey,
    issuer: x509.SubjectKeyIdentifier,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer)
    for extension in (identifier, *extensions):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA384())


# Files ------------------------------------------------------------------------------------------


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the content of a certificate's file."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: SigningKey) -> bytes:
    """Return the content of a private key's file, of the authority or the server."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def site_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as ``flower-supernode --auth-supernode-private-key`` reads it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def site_public_key(key: ec.EllipticCurvePublicKey, name: str) -> bytes:
    """Return a public key as ``flwr supernode register`` reads it."""
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line + f" {name}\n".encode()


def _reader(
    load: Callable[[bytes], Any], form: str, fits: Callable[[Any], bool], expected: str
) -> Callable[[str, bytes], Any]:
    """Return a function of a path and its content, which raises `UserError` for anything else."""

    def read(path: str, content: bytes) -> Any:
        try:
            loaded = load(content)
        except TypeError as error:
            raise UserError(
                f"{path} is locked with a passphrase; unlock it for this run"
            ) from error
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise UserError(f"{path} is not {form} format") from error
        if not fits(loaded):
            raise UserError(f"{path} is a key of another kind; expected {expected}")
        return loaded

    return read


def _load_certificate(content: bytes) -> x509.Certificate:
    certificate = x509.load_pem_x509_certificate(content)
    _ = certificate.extensions  # which are parsed at the first access only
    return certificate


def _is_nist(key: Any) -> bool:
    curves = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    return isinstance(getattr(key, "curve", None), curves)


_SIGNING = "elliptic curve or RSA"
_SITE = "one on a NIST curve, as Flower takes it"

read_certificate: Callable[[str, bytes], x509.Certificate] = _reader(
    _load_certificate,
    "a certificate in PEM",
    lambda certificate: isinstance(certificate.public_key(), PublicKey),
    _SIGNING,
)
read_key: Callable[[str, bytes], SigningKey] = _reader(
    partial(load_pem_private_key, password=None),
    "a private key in PEM",
    lambda key: isinstance(key, SigningKey),
    _SIGNING,
)
read_site_key: Callable[[str, bytes], ec.EllipticCurvePrivateKey] = _reader(
    partial(load_ssh_private_key, password=None), "a private key in OpenSSH", _is_nist, _SITE
)
read_site_public_key: Callable[[str, bytes], ec.EllipticCurvePublicKey] = _reader(
    load_ssh_public_key, "a public key in OpenSSH", _is_nist, _SITE
)
