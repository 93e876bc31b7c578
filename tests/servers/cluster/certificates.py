"""One authority for a cluster, the certificates it gives, and kubeconfigs that use them."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS = 2


class Authority:
    """Signs with a key of its own, which lives as long as the cluster; all lies in `folder`."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self._server = folder, server
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vae-cluster")])
        builder = _valid(self._name, self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._write("ca.crt", builder.sign(self._key, hashes.SHA256()))
        tokens = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._write_key("sa.key", tokens)
        (folder / "sa.pub").write_bytes(
            tokens.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def issue(
        self, file: str, user: str, groups: Sequence[str] = (), names: Sequence[str] = ()
    ) -> None:
        """FILE.crt and FILE.key of a user and its groups; of a server also for its names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ])  # fmt: skip
        usages = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        )
        builder = _valid(subject, self._name, key.public_key()).add_extension(
            usages, critical=False
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
        self._write(f"{file}.crt", builder.sign(self._key, hashes.SHA256()))
        self._write_key(f"{file}.key", key)

    def kubeconfig(self, user: str, groups: Sequence[str] = (), namespace: str = "default") -> Path:
        """A file for `KUBECONFIG` with which somebody is this user."""
        file = user.replace(":", "-")
        self.issue(file, user, groups)
        found = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [{
                "name": "cluster",
                "cluster": {"server": self._server, "certificate-authority": self._at("ca.crt")},
            }],
            "users": [{
                "name": user,
                "user": {
                    "client-certificate": self._at(f"{file}.crt"),
                    "client-key": self._at(f"{file}.key"),
                },
            }],
            "contexts": [{
                "name": "cluster",
                "context": {"cluster": "cluster", "user": user, "namespace": namespace},
            }],
        }  # fmt: skip
        path = self.folder / f"{file}.conf"
        path.write_text(yaml.safe_dump(found))
        return path

    def _at(self, name: str) -> str:
        return str(self.folder / name)

    def _write(self, name: str, certificate: x509.Certificate) -> None:
        (self.folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.folder / name).write_bytes(pem)


def _valid(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
