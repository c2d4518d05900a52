"""A development certificate is a function of its secret: who has the same one signs the same way."""

from cryptography import x509

from serve_app.config.labels import SigningConfig
from serve_app.labels.development_certificate import ORGANISATION, make_development_certificate
from serve_app.labels.manifests import ManifestReader, ManifestSigner, Provenance
from serve_app.labels.source_type import MADE
from tests.serve_app.labels.files import file_of

SECRET = bytes(range(32))


def test_the_same_secret_gives_the_same_certificate_and_another_another() -> None:
    assert make_development_certificate(SECRET) == make_development_certificate(SECRET)
    chain, key = make_development_certificate(SECRET)
    others = make_development_certificate(SECRET[::-1])
    assert others[0] != chain
    assert others[1] != key


def test_it_says_that_nobody_should_trust_it() -> None:
    for certificate in x509.load_pem_x509_certificates(make_development_certificate(SECRET)[0].encode()):
        assert ORGANISATION in certificate.subject.rfc4514_string().replace("\\", "")


def test_what_one_process_signs_is_known_by_another_with_the_same_secret_and_by_no_third() -> None:
    here, there, elsewhere = (ManifestSigner(SigningConfig(), secret) for secret in (SECRET, SECRET, None))
    file = here.sign(file_of("png"), Provenance(MADE))
    assert ManifestReader(there.certificate).read(file).is_ours
    assert not ManifestReader(elsewhere.certificate).read(file).is_ours
    assert (here.key_origin, elsewhere.key_origin) == ("derived from redis.key", "drawn at this start")
    assert here.is_development
