"""A second reader of remetal's repositories, written from imager/repository/FORMAT.md alone.

It shares no code with remetal. Usage: independent_reader.py REPOSITORY IMAGE KEY PASSPHRASE OUT
writes every volume of an image to OUT/<volume id with / as ->.
"""

import base64
import hashlib
import json
import struct
import sys
import unicodedata
from pathlib import Path

import blake3
import zstandard
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PREFIX = b"remetal/1 "
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
HEADER = struct.Struct("<8sHBBI16s16s16s")


def hkdf(secret, salt, label):
    return HKDF(SHA256(), 32, salt, PREFIX + label.encode()).derive(secret)


def open_seal1(key, label, aad, data):
    return AESGCM(hkdf(key, data[:32], label)).decrypt(bytes(12), data[32:], aad)


def unlock(path, passphrase):
    file = json.loads(Path(path).read_text())
    kdf = file["kdf"]
    key = Argon2id(
        salt=base64.b64decode(kdf["salt"]),
        length=32,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    ).derive(unicodedata.normalize("NFC", passphrase).encode())
    sealed = base64.b64decode(file["sealed"])
    public = base64.b64decode(file["public_key"])
    private = AESGCM(key).decrypt(sealed[:12], sealed[12:], public)
    pair, found = expand(private)
    assert found == public
    return pair, hashlib.sha256(public).digest()[:16]


def expand(seed):
    assert len(seed) == 32
    expanded = hashlib.shake_256(seed).digest(96)
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    curve = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
    public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(kem, curve), public


class Reader:
    def __init__(self, root, pair, recipient):
        self.root = Path(root)
        raw = (self.root / "config").read_bytes()
        config = json.loads(raw)
        assert config["format"] == "remetal repository"
        assert config["version"] == 1
        self.id = hashlib.sha256(raw).digest()[:16]
        group = bytes.fromhex(config["group"])
        self.accepted, self.revoked, chain = set(), {}, [config]
        self.signing_key = base64.b64decode(config["signing_key"])
        while (path := self.root / "generations" / str(len(chain) + 1)).exists():
            chain.append(self.statement(path.read_bytes(), 7, group))
            assert chain[-1]["generation"] == len(chain)
            self.signing_key = base64.b64decode(chain[-1]["signing_key"])
            self.accepted = set(chain[-1]["accepted"])
        for path in self.root.glob("revocations/*"):
            revocation = self.statement(path.read_bytes(), 6, group)
            names = self.revoked.setdefault(revocation["credential"], set(revocation["accepted"]))
            names &= set(revocation["accepted"])
        generation, entry = next(
            (g, e) for g in reversed(chain) for e in g["recipients"] if e["id"] == recipient.hex()
        )
        keys = base64.b64decode(generation["signing_key"])
        keys += base64.b64decode(generation["opening_key"])
        info = PREFIX + b"repository secrets" + group + keys
        secrets = SUITE.decrypt(base64.b64decode(entry["secrets"]), pair, info=info)
        assert secrets[32:48] == group
        self.secret = secrets[48:80]
        assert len(secrets) == 81 + 32 * secrets[80]
        self.pairs = {}
        for at in range(81, len(secrets), 32):
            opening, public = expand(secrets[at : at + 32])
            self.pairs[hashlib.sha256(public).digest()[:16]] = opening
        self.directory_key = hkdf(self.secret, self.id, "directory")
        self.chunk_ids = hkdf(self.secret, self.id, "chunk id")
        self.map_ids = hkdf(self.secret, self.id, "map id")
        self.places = {}
        for path in sorted((self.root / "indexes").iterdir()):
            self.read_index(path)

    def header(self, data, magic):
        found, version, kind, id_hash, envelope, session, group, repo = HEADER.unpack_from(data)
        assert (found, version, id_hash, repo) == (magic, 1, 1, self.id), found
        return kind, envelope, session, group

    def session_key(self, envelope, session):
        info = PREFIX + b"session" + self.id + session
        assert len(envelope) == 1 + 1184 * envelope[0]
        for at in range(1, len(envelope), 1184):
            if envelope[at : at + 16] in self.pairs:
                pair = self.pairs[envelope[at : at + 16]]
                return SUITE.decrypt(envelope[at + 16 : at + 1184], pair, info=info)
        raise AssertionError("taken after this recovery key was removed")

    def read_index(self, path):
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == path.name
        self.header(data, b"RMTLINDX")
        body = open_seal1(self.directory_key, "index", data[:64], data[64:])
        packs, entries = struct.unpack_from("<II", body)
        names = [body[8 + 40 * i : 40 + 40 * i].hex() for i in range(packs)]
        start = 8 + 40 * packs
        assert len(body) == start + 48 * entries
        for i in range(entries):
            chunk, pack, offset, length, plain = struct.unpack_from(
                "<32sIIII", body, start + 48 * i
            )
            self.places[chunk] = (names[pack], offset, length, plain & 0xFFFFFF, plain >> 24)

    def blob(self, identity, kind, id_key):
        pack, offset, length, plain, codec = self.places[identity]
        data = (self.root / "packs" / pack[:2] / pack).read_bytes()
        assert hashlib.sha256(data).hexdigest() == pack
        found, envelope, session, _ = self.header(data, b"RMTLPACK")
        assert found == kind
        if kind == 1:
            session_key = self.session_key(data[64 : 64 + envelope], session)
            key = hkdf(session_key, session, "chunk")
        else:
            key = hkdf(self.secret, session, "map")
        sealed = data[offset : offset + length]
        aad = identity + struct.pack("<IB", plain, codec)
        text = AESGCM(key).decrypt(sealed[:12], sealed[12:], aad)
        text = zstandard.decompress(text) if codec == 1 else text
        assert len(text) == plain
        assert blake3.blake3(text, key=id_key).digest() == identity
        return text

    def image(self, image_id):
        data = (self.root / "images" / image_id).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image_id
        _, size, session, group = self.header(data, b"RMTLIMAG")
        envelope, at, parts = data[64 : 64 + size], 64 + size, []
        for _ in range(4):
            (length,) = struct.unpack_from("<I", data, at)
            parts.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        assert len(data) == at + 64
        credential = self.statement(parts[2], 1, group)
        public = base64.b64decode(credential["public_key"])
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(data[at:], data[:at])
        revoked = self.revoked.get(credential["credential"])
        assert revoked is None or f"images/{image_id}" in revoked, "the credential was revoked"
        manifest_key = hkdf(self.session_key(envelope, session), session, "manifest")
        summary = open_seal1(self.directory_key, "summary", data[:64], parts[0])
        manifest = AESGCM(manifest_key).decrypt(bytes(12), parts[1], data[:64])
        return json.loads(zstandard.decompress(summary)), json.loads(zstandard.decompress(manifest))

    def statement(self, data, kind, group):
        found, _, _, owner = self.header(data, b"RMTLSTMT")
        assert (found, owner) == (kind, group)
        (length,) = struct.unpack_from("<I", data, 64)
        if hashlib.sha256(data).hexdigest() not in self.accepted:
            key = ed25519.Ed25519PublicKey.from_public_bytes(self.signing_key)
            key.verify(data[68 + length :], data[: 68 + length])
        return json.loads(data[68 : 68 + length])

    def runs(self, node_id, level):
        node = self.blob(node_id, 2, self.map_ids)
        assert node[:8] == b"RMAP" + bytes([level, 0, 0, 0])
        for at in range(8, len(node), 40):
            length, identity = struct.unpack_from("<Q32s", node, at)
            if level:
                yield from self.runs(identity, level - 1)
            else:
                yield length, identity

    def write(self, volume, path):
        with path.open("wb") as out:
            for length, identity in self.runs(bytes.fromhex(volume["root"]), volume["level"]):
                if identity in {bytes(32), b"\xff" * 32}:
                    out.seek(length, 1)
                else:
                    out.write(self.blob(identity, 1, self.chunk_ids))
            out.truncate(volume["length"])


def read_image(root, image_id, key, passphrase, out):
    reader = Reader(root, *unlock(key, passphrase))
    summary, manifest = reader.image(image_id)
    for volume in summary["volumes"]:
        reader.write(volume, Path(out) / volume["id"].replace("/", "-"))
    return summary, manifest


if __name__ == "__main__":
    print(json.dumps(read_image(*sys.argv[1:6])[1]["machine"], indent=2))
