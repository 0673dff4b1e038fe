"""X.509 and SSH: the federation's own authority, its server's certificate, the sites' keys.

Extensions are those that strict verifiers ask for (RFC 5280; Python's ``VERIFY_X509_STRICT``). Keys
are on P-384, the curve that Flower makes its own on.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

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

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

#: Clocks of sites may be behind by so much.
CLOCK_SKEW = timedelta(days=1)

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NIST = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(ec.SECP384R1())


def parse_host(text: str) -> x509.GeneralName:
    """Tell a DNS name from an IP address.

    Raises
    ------
    UserError
        If it is neither, or an address that a server listens on but nobody reaches it by.
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
    """Make the certificate of an authority, signed by itself.

    Parameters
    ----------
    key
        Its private key.
    days
        How long it is valid from now.
    now
        The time, in UTC.
    """
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # With a part of the key in it, authorities of several federations can be told apart.
    name = _name(f"HA-Fedformer authority {identifier.digest.hex()[:12]}")
    signs = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(key.public_key(), name, name, now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(_issued_by(identifier), critical=False)
        .sign(key, hashes.SHA384())
    )


def sign_server(
    authority: x509.Certificate,
    key: SigningKey,
    public_key: PublicKey,
    hosts: Sequence[x509.GeneralName],
    days: int,
    now: datetime,
) -> x509.Certificate:
    """Sign a certificate of the server.

    Parameters
    ----------
    authority, key
        Who signs, and with what.
    public_key
        The server's.
    hosts
        What it is valid for.
    days
        How long it is valid from now; not longer than its authority.
    now
        The time, in UTC.
    """
    until = min(now + timedelta(days=days), authority.not_valid_after_utc)
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        _builder(public_key, _name("HA-Fedformer server"), authority.subject, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(_issued_by(identifier), critical=False)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA384())
    )


def hosts_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return what a certificate is valid for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may sign others, and says by which key."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def server_public_key(path: str, certificate: x509.Certificate) -> PublicKey:
    """Return the key that a certificate is for.

    Raises
    ------
    UserError
        If it is of a kind that is not signed here.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise UserError(f"{path} is for a key of another kind; expected elliptic curve or RSA")
    return key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as a file holds it."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: SigningKey) -> bytes:
    """Return a private key of the authority or the server as a file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def site_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as ``flower-supernode --auth-supernode-private-key`` reads it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def site_public_key(key: ec.EllipticCurvePublicKey, name: str) -> bytes:
    """Return a public key as ``flwr supernode register`` reads it."""
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line + f" {name}\n".encode()


def read_certificate(path: str, content: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises
    ------
    UserError
        If it is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(content)
        # Its extensions are read only when they are asked for.
        _ = certificate.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise UserError(f"{path} is not a certificate in PEM format") from error
    return certificate


def read_key(path: str, content: bytes) -> SigningKey:
    """Read a private key of the authority or the server.

    Raises
    ------
    UserError
        If it is none, or locked with a passphrase.
    """
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UserError(f"{path} is locked with a passphrase; unlock it for this run") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a private key in PEM format") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise UserError(f"{path} is a key of another kind; expected elliptic curve or RSA")
    return key


def read_site_key(path: str, content: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises
    ------
    UserError
        If it is none that Flower takes.
    """
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a private key in OpenSSH format") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _NIST):
        raise UserError(f"{path} is a key of another kind; expected one on a NIST curve")
    return key


def read_site_public_key(path: str, content: bytes) -> ec.EllipticCurvePublicKey:
    """Read a site's public key.

    Raises
    ------
    UserError
        If it is none that Flower takes.
    """
    try:
        key = load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a public key in OpenSSH format") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _NIST):
        raise UserError(f"{path} is a key of another kind; expected one on a NIST curve")
    return key


def utc_now() -> datetime:
    """Return the time, in whole seconds, as certificates hold it."""
    return datetime.now(UTC).replace(microsecond=0)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    public_key: PublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    until: datetime,
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


def _issued_by(identifier: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
