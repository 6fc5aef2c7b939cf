"""CRC-32C over metadata that holds its own checksum."""

import google_crc32c


def crc32c_without(data: bytes, field: int) -> int:
    """Return the CRC-32C of `data` with the four bytes at `field` taken as zeros."""
    crc = google_crc32c.value(data[:field])
    crc = google_crc32c.extend(crc, bytes(4))
    return int(google_crc32c.extend(crc, data[field + 4 :]))
