"""`utmp-credentials`: strict verifiers and Flower take what it writes, and nothing is replaced."""

import re
import shutil
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from data_checks import files
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    sign_message,
    uses_nist_ec_curve,
    verify_signature,
)
from forked_command import Run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.config import CredentialsConfig, compose
from common.errors import UserError
from server.credentials.certificates import make_authority, new_key, parse_host, sign_server
from server.credentials.folder import CredentialFolder
from server.credentials.issuing import CA, Credentials, issue

COMMAND = "utmp-credentials"
LOADS = """
import server.credentials.issuing
from server.commands.credentials import main
"""

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)

HOSTS_OF = ("superlink.example.org", "10.0.0.5")
HOSTS = f"hosts=[{','.join(HOSTS_OF)}]"
CLIENTS = ("clients.language=2", "clients.audio=1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def issued(out: Path, *overrides: str, now: datetime = NOW) -> Credentials:
    return issue(compose(CredentialsConfig, [f"out={out}", *overrides]), now)


def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("another") / "credentials"
    issued(out, HOSTS, *CLIENTS)
    return out


whole = pytest.fixture(scope="module")(another)
other = pytest.fixture(scope="module")(another)


@pytest.fixture
def ready(out: Path, whole: Path) -> Path:
    """A copy of all credentials."""
    return Path(shutil.copytree(whole, out))


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(leaf: x509.Certificate, authority: x509.Certificate, host: str, at: datetime) -> None:
    """Verify a certificate as `cryptography` would for a web site."""
    policy = PolicyBuilder().store(Store([authority])).time(at.replace(tzinfo=None))
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    assert policy.build_server_verifier(subject).verify(leaf, []) == [leaf, authority]


def verify_server(out: Path, host: str, at: datetime = NOW) -> None:
    verify(certificate(out / "server" / "server.crt"), certificate(out / "ca.crt"), host, at)


# What is written --------------------------------------------------------------------------------

SITES = ("language-0", "language-1", "audio-0")
MODES = {"key": 0o600, "crt": 0o644, "pub": 0o644}
NAMES_OF = ["ca.crt", "ca.key", "server/ca.crt", "server/server.crt", "server/server.key"]
NAMES_OF += [f"sites/{n}/{file}" for n in SITES for file in (f"{n}.key", f"{n}.pub", "ca.crt")]
FILES = {name: MODES[name[-3:]] for name in NAMES_OF}


def test_everyone_gets_a_folder_and_private_keys_are_for_their_owner(whole: Path) -> None:
    paths = [whole, *whole.rglob("*")]
    modes = {path.relative_to(whole).as_posix(): path.stat().st_mode & 0o777 for path in paths}
    assert {name: mode for name, mode in modes.items() if mode != 0o700} == FILES
    assert len({(whole / name).read_bytes() for name in FILES if name.endswith("ca.crt")}) == 1


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.builds(
    lambda labels, last: ".".join([*labels, last]),
    st.lists(LABELS, max_size=3),
    LABELS.filter(lambda label: not label.isdigit()),
)
ADDRESSES = st.ip_addresses().filter(lambda address: not address.is_unspecified)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(NAMES, ADDRESSES.map(str)), min_size=1, max_size=4, unique=True))
def test_certificate_holds_for_its_hosts_and_its_time_and_no_other(hosts: list[str]) -> None:
    key, server = new_key(), new_key()
    authority = make_authority(key, 10, NOW)
    parsed = [parse_host(host) for host in hosts]
    leaf = sign_server(authority, key, server.public_key(), parsed, 5, NOW)
    for host in hosts:
        verify(leaf, authority, host, NOW)
        verify(leaf, authority, host, NOW + 4 * DAY)
    for at in (NOW - 2 * DAY, NOW + 6 * DAY):
        with pytest.raises(VerificationError, match="not valid at validation time"):
            verify(leaf, authority, hosts[0], at)
    for host in {"other.example.org", "10.9.8.7"} - set(hosts):
        with pytest.raises(VerificationError, match=r"subjectAltName|SAN|subject"):
            verify(leaf, authority, host, NOW)


@given(st.text(max_size=30))
def test_a_host_is_a_name_an_address_or_refused(text: str) -> None:
    try:
        parsed = parse_host(text)
    except UserError:
        return
    if isinstance(parsed, x509.DNSName):
        assert re.fullmatch(r"[a-z0-9.-]+", parsed.value)
    else:
        assert isinstance(parsed.value, IPv4Address | IPv6Address)


# What others make of it -------------------------------------------------------------------------


def shake_hands(out: Path, authority: Path, host: str) -> str:
    """Connect a strict client to a server; return the version of TLS."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(out / "server" / "server.crt", out / "server" / "server.key")
    asking = ssl.create_default_context(cafile=authority)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up, server_hostname=host)
    server = serving.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return str(client.version())


def test_strict_tls_client_takes_the_server_and_refuses_others(out: Path, other: Path) -> None:
    issued(out, HOSTS, *CLIENTS, now=datetime.now(UTC))
    for host in (*HOSTS_OF, "127.0.0.1"):
        assert shake_hands(out, out / "sites" / "audio-0" / "ca.crt", host) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(out, out / "ca.crt", "superlink.example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(out, other / "ca.crt", "10.0.0.5")


def test_flower_takes_the_keys_of_sites_and_each_has_its_own(whole: Path) -> None:
    known = set()
    for name in SITES:
        path = whole / "sites" / name / name
        # As flower-supernode and flwr supernode register read them.
        private = pem.load_ssh_private_key(path.with_suffix(".key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        registered = try_load_public_key(path.with_suffix(".pub"))
        public = bytes_to_public_key(registered)
        assert uses_nist_ec_curve(public)
        assert verify_signature(public, b"text", sign_message(private, b"text"))
        assert path.with_suffix(".pub").read_text().endswith(f" {name}\n")
        known.add(registered)
    assert len(known) == 3


# What stays -------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing_and_more_clients_add_only_theirs(ready: Path) -> None:
    before = files(ready)
    times = {path: path.stat().st_mtime_ns for path in ready.rglob("*")}
    again = issued(ready, HOSTS, *CLIENTS, now=NOW + 3 * DAY)
    assert (again.new, again.new_clients, again.warnings) == ({}, [], [])
    assert set(again.folder.kept) == set(FILES)
    assert {path: path.stat().st_mtime_ns for path in ready.rglob("*")} == times
    # Neither hosts nor the clients that are there need be said again.
    more = issued(ready, "clients.audio=2", now=NOW + DAY)
    assert [str(client) for client in more.new_clients] == ["audio-1"]
    assert set(more.new) == {f"sites/audio-1/{name}" for name in ("audio-1.key", "audio-1.pub", CA)}
    assert files(ready) == before | more.new


def check_pairs(out: Path) -> None:
    """Check that what is there belongs together."""
    authority, server = certificate(out / "ca.crt"), certificate(out / "server" / "server.crt")
    server.verify_directly_issued_by(authority)
    for path, owner in ((out / "ca.key", authority), (out / "server" / "server.key", server)):
        if path.exists():
            key = pem.load_pem_private_key(path.read_bytes(), None)
            assert key.public_key() == owner.public_key()
    for path in out.glob("sites/*/*.key"):
        public = pem.load_ssh_public_key(path.with_suffix(".pub").read_bytes())
        assert pem.load_ssh_private_key(path.read_bytes(), None).public_key() == public


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(sorted(FILES)), max_size=6))
@example({"sites/audio-0/audio-0.key", "server/server.key"})
def test_whatever_is_missing_what_is_there_stays(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, missing: set[str]
) -> None:
    out = tmp_path_factory.mktemp("some") / "credentials"
    shutil.copytree(whole, out)
    for name in missing:
        (out / name).unlink()
    before = files(out)
    try:
        done = issued(out, HOSTS, *CLIENTS, now=NOW + DAY)
    except UserError:
        assert files(out) == before
        assert missing & {"ca.crt", "ca.key"}
        return
    after = files(out)
    assert before.items() <= after.items()
    assert set(done.new) == set(after) - set(before) <= missing
    # A key that only its owner has is not made anew.
    for name in set(done.new):
        assert name[-3:] != "key" or not {name[:-3] + end for end in ("pub", "crt")} & set(before)
    check_pairs(out)


@pytest.mark.parametrize("stop", range(len(FILES)))
def test_run_that_was_cut_short_is_completed_by_the_next(
    out: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    write, left = CredentialFolder.write, iter([True] * stop + [False])

    def until(*arguments: Any) -> None:
        if not next(left):
            raise UserError("no space left")
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space"):
        patch.setattr(CredentialFolder, "write", until)
        issued(out, HOSTS, *CLIENTS)
    half = files(out)
    assert len(half) == stop
    issued(out, HOSTS, *CLIENTS)
    after = files(out)
    assert set(after) == set(FILES)
    assert half.items() <= after.items()
    check_pairs(out)


def test_what_another_run_wrote_is_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = CredentialFolder.write

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(CredentialFolder, "write", write)
        issued(out, HOSTS, *CLIENTS)
        before.update(files(out))
        write(*arguments)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(CredentialFolder, "write", overtaken)
    with pytest.raises(UserError, match=r"ca\.key was written by another run meanwhile.*kept"):
        issued(out, HOSTS, *CLIENTS)
    assert files(out) == before


@pytest.mark.parametrize("attempt", range(3))
def test_runs_at_once_leave_one_set_of_credentials(out: Path, attempt: int) -> None:
    start = Barrier(4)
    # Hydra composes for one thread at a time.
    config = compose(CredentialsConfig, [f"out={out}", HOSTS, *CLIENTS])

    def run(_: int) -> None:
        start.wait()
        try:
            issue(config, NOW)
        except UserError as error:
            assert "by another run meanwhile" in str(error)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    issued(out, HOSTS, *CLIENTS)
    assert set(files(out)) == set(FILES)
    check_pairs(out)


# Renewal ----------------------------------------------------------------------------------------


def test_renewal_replaces_the_certificate_and_nothing_else(ready: Path) -> None:
    before = files(ready)
    renewed = issued(ready, "hosts=[other.example.org]", "renew=server", now=NOW + 360 * DAY)
    after = files(ready)
    former = str(renewed.former)
    assert former.startswith("server/server.crt.2027-02-24.")
    assert after.pop(former) == before["server/server.crt"]
    assert after.pop("server/server.crt") != before.pop("server/server.crt")
    assert after == before
    verify_server(ready, "other.example.org", NOW + 700 * DAY)
    with pytest.raises(VerificationError):
        verify_server(ready, "superlink.example.org", NOW + 360 * DAY)
    check_pairs(ready)


def test_renewal_keeps_hosts_and_needs_no_private_key_of_the_server(ready: Path) -> None:
    (ready / "server" / "server.key").unlink()
    for _ in range(2):  # in one second
        assert issued(ready, "renew=server").hosts == [*HOSTS_OF, "127.0.0.1"]
    assert len(list(ready.glob("server/server.crt.*"))) == 2
    verify_server(ready, "10.0.0.5")


def test_renewal_keeps_a_certificate_with_a_short_serial_number(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(x509, "random_serial_number", lambda: 5)
        issued(out, HOSTS)
    before = files(out)["server/server.crt"]
    renewed = issued(out, "renew=server")
    assert files(out)[str(renewed.former)] == before


def test_an_authority_whose_key_is_elsewhere_signs_nothing_and_needs_not(ready: Path) -> None:
    (ready / "ca.key").unlink()
    assert issued(ready, HOSTS, "clients.audio=2").new_clients
    before = files(ready)
    with pytest.raises(UserError, match=r"ca\.key is not there, and .* put it back for this run"):
        issued(ready, HOSTS, "clients.audio=3", "renew=server")
    assert files(ready) == before


def test_authority_of_the_user_s_own_may_have_an_rsa_key(out: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    out.mkdir()
    (out / "ca.crt").write_bytes(make_authority(key, 100, NOW).public_bytes(pem.Encoding.PEM))
    (out / "ca.key").write_bytes(key_of(key, PKCS8))
    issued(out, HOSTS)
    verify_server(out, "10.0.0.5")


# Warnings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "says"),
    [(334, None), (336, "expires on 2027-03-01"), (366, "has expired on 2027-03-01")],
)
def test_certificate_that_ends_is_warned_of(ready: Path, days: int, says: str | None) -> None:
    line = f"server/server.crt {says}; sign a new one with renew=server"
    warnings = issued(ready, "clients.audio=2", now=NOW + days * DAY).warnings
    assert [line in warning for warning in warnings] == [True] * (says is not None)


def test_authority_that_ends_is_warned_of_and_signs_nothing_after_it(out: Path) -> None:
    issued(out, HOSTS, "ca_days=100", "days=20")
    # Nor does the server's certificate outlive it.
    issued(out, "renew=server", "days=365")
    ends = {certificate(out / name).not_valid_after_utc for name in ("ca.crt", "server/server.crt")}
    assert ends == {NOW + 100 * DAY}
    authority, server = issued(out, now=NOW + 101 * DAY).warnings
    assert "ca.crt has expired on 2026-06-09; make a new folder of credentials" in authority
    assert "server.crt has expired" in server
    with pytest.raises(UserError, match=r"ca\.crt has expired and can sign nothing"):
        issued(out, "renew=server", now=NOW + 101 * DAY)


def test_host_that_the_certificate_lacks_is_said(ready: Path) -> None:
    (line,) = issued(ready, "hosts=[10.0.0.5,SUPERLINK.example.org,new.example.org,::1]").warnings
    assert "is not valid for new.example.org, ::1, only for superlink.example.org, 10.0" in line
    assert "renew=server" in line


# Mistakes ---------------------------------------------------------------------------------------


def key_of(key: Any, form: pem.PrivateFormat, lock: Any = None) -> bytes:
    """The content of a key's file."""
    content: bytes = key.private_bytes(pem.Encoding.PEM, form, lock or pem.NoEncryption())
    return content


PKCS8, OPEN_SSH = pem.PrivateFormat.PKCS8, pem.PrivateFormat.OpenSSH
LOCK = pem.BestAvailableEncryption(b"secret")
GARBAGE, OTHER_KIND = b"garbage", ed25519.Ed25519PrivateKey.generate()

#: File; what is put there: a file of another federation, or content; what is said.
MISFITS: list[tuple[str, str | bytes, str]] = [
    ("ca.crt", GARBAGE, r"ca\.crt is not a certificate in PEM format"),
    ("ca.crt", "server/server.crt", r"ca\.crt is not the certificate of an authority"),
    ("ca.key", GARBAGE, r"ca\.key is not a private key in PEM format"),
    ("ca.key", "ca.key", r"ca\.key does not belong to ca\.crt beside it"),
    ("ca.key", key_of(new_key(), PKCS8, LOCK), r"ca\.key is locked with a passphrase"),
    ("ca.key", key_of(OTHER_KIND, PKCS8), "expected elliptic curve or RSA"),
    ("server/server.key", "ca.key", r"server\.key does not belong to server\.crt"),
    ("server/server.crt", "server/server.crt", r"server\.crt is of another authority than \S*ca"),
    ("sites/audio-0/ca.crt", "ca.crt", r"audio-0/ca\.crt is of another authority"),
    ("sites/audio-0/audio-0.key", GARBAGE, r"audio-0\.key is not a private key in OpenSSH"),
    ("sites/audio-0/audio-0.key", key_of(OTHER_KIND, OPEN_SSH), "expected one on a NIST curve"),
    (
        *("sites/audio-0/audio-0.key", "sites/language-1/language-1.key"),
        r"audio-0\.key does not belong to audio-0\.pub",
    ),
    ("sites/audio-0/audio-0.pub", GARBAGE, r"audio-0\.pub is not a public key in OpenSSH"),
]


@pytest.mark.parametrize(("name", "source", "says"), MISFITS)
def test_files_that_do_not_fit_are_named_and_nothing_is_written(
    ready: Path, other: Path, name: str, source: str | bytes, says: str
) -> None:
    content = source if isinstance(source, bytes) else (other / source).read_bytes()
    (ready / name).write_bytes(content)
    before = files(ready)
    with pytest.raises(UserError, match=says):
        issued(ready, HOSTS, *CLIENTS, "clients.vision=1")
    assert files(ready) == before


def test_authority_that_was_lost_is_copied_back_rather_than_made_anew(ready: Path) -> None:
    lost = [ready / "ca.crt", ready / "ca.key"]
    for says in (
        r"ca\.crt is missing and server/ca\.crt is there",
        r"server\.crt is of another authority .*put back its own ca",
    ):
        for path in lost:
            path.unlink()
        with pytest.raises(UserError, match=says):
            issued(ready, HOSTS, *CLIENTS)
        lost = list(ready.rglob("ca.crt"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("out=null hosts=[a]", "out is required; give it as out=…"),
        ("", "hosts is required; give it as hosts=…"),
        ("hosts={a:b}", "hosts={'a': 'b'}: expected the names and addresses"),
        ("hosts=[a,null]", "hosts=['a', None]: expected the names and addresses"),
        ("hosts=[a,'b:8000']", "hosts: 'b:8000' is neither a DNS name nor an IP"),
        ("hosts=[10.0.0.300]", "hosts: '10.0.0.300' is neither a DNS name nor an IP"),
        (f"hosts=[{'a' * 64}]", f"hosts: '{'a' * 64}' is neither"),
        ("hosts=[0.0.0.0]", "hosts: 0.0.0.0 is not an address by which a site"),
        ("hosts=[a] clients.audio=0", "clients.audio=0: expected a number of at least 1"),
        ("hosts=[a] clients.default=2", "modality 'default': expected letters"),
        ("hosts=[a] out=file", "out=file is a file; expected a folder"),
        ("hosts=[a] out=file/here", "file/here"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loaded: Run, tmp_path: Path, arguments: str, says: str
) -> None:
    (tmp_path / "file").touch()
    assert loaded("out=credentials", *arguments.split()).error.startswith(says)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_one_line_and_leaves_no_half_file(loaded: Run, out: Path) -> None:
    error = loaded("out=credentials", HOSTS, largest_file=150).error
    assert error.startswith("credentials/ca.key cannot be read or written: ")
    assert list(out.iterdir()) == []


# The command ------------------------------------------------------------------------------------


def test_command_says_what_it_wrote_what_it_kept_and_what_comes_next(loaded: Run) -> None:
    shown = loaded("out=my credentials", HOSTS, "clients.audio=1").shown
    lines = shown.splitlines()
    assert "wrote my credentials: ca.key, ca.crt" in lines
    assert "wrote my credentials/sites/audio-0: audio-0.key, audio-0.pub, ca.crt" in lines
    register = "flwr supernode register 'my credentials/sites/audio-0/audio-0.pub' CONNECTION"
    assert f"  {register} --name audio-0" in lines
    (node,) = [line for line in lines if line.startswith("  utmp-client ")]
    assert "--superlink superlink.example.org:8000 --root-certificates ca.crt" in node
    assert "--auth-supernode-private-key audio-0.key" in node
    assert node.endswith("""--node-config 'modality="audio" part=0'""")
    (server,) = [line for line in lines if line.startswith("  utmp-superlink ")]
    assert "--ssl-keyfile 'my credentials/server/server.key' --enable-supernode-auth" in server

    shown = loaded("out=my credentials", "hosts=[elsewhere]", "clients.audio=2").shown
    assert "kept my credentials/sites/audio-0: audio-0.key, audio-0.pub, ca.crt" in shown
    assert "--name audio-1" in shown and "--name audio-0" not in shown
    assert "utmp-superlink" not in shown
    assert "warning: my credentials/server/server.crt is not valid for elsewhere" in shown

    shown = loaded("out=my credentials", "renew=server").shown
    assert "kept the former certificate as my credentials/server/server.crt.2" in shown
    assert "utmp-superlink" in shown and "flwr supernode" not in shown
