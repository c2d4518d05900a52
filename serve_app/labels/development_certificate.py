"""A certificate to sign with where the operator has none yet: it says in its own name that nobody should trust it."""

import hmac
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANISATION: Final = "Darkroom development, not trusted"
# Fixed, so that the certificate depends on its secret alone. The end is RFC 5280's for a certificate that has none.
_BEGIN, _END = datetime(2026, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_CURVE_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def make_development_certificate(secret: bytes) -> tuple[str, str]:
    """Returns a chain and its private key, in PEM: for the same `secret`, of 32 random bytes, the same."""
    # C2PA does not take a certificate that has signed itself.
    authority_key, key = _derive_key(secret, b"authority"), _derive_key(secret, b"signer")
    authority = _name("Darkroom development authority")
    root = _begin(authority, authority, authority_key.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(_usage(signs_certificates=True), critical=True)
    own = _begin(_name("Darkroom development certificate"), authority, key.public_key())
    own = own.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    own = own.add_extension(_usage(signs_certificates=False), critical=True)
    own = own.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    own = own.add_extension(issuer, critical=False)
    chain = [each.sign(authority_key, hashes.SHA256(), ecdsa_deterministic=True) for each in (own, root)]
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in chain), _in_pem(key)


def _derive_key(secret: bytes, purpose: bytes) -> ec.EllipticCurvePrivateKey:
    """Derives a key by reducing more bits than the curve has (FIPS 186-5, A.2.1)."""
    drawn = int.from_bytes(hmac.digest(secret, purpose, "sha512"), "big")
    return ec.derive_private_key(drawn % (_CURVE_ORDER - 1) + 1, ec.SECP256R1())


def _name(common: str) -> x509.Name:
    parts = {NameOID.ORGANIZATION_NAME: ORGANISATION, NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts.items()])


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        # Positive, and of at most twenty bytes.
        .serial_number(int.from_bytes(identifier.digest, "big") >> 1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(identifier, critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _in_pem(key: ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()
