from pathlib import Path

import pytest

# A boot sector: says HELLO on COM1, waits for a byte there, then resets on "r" and powers off on
# anything else.
_CODE = bytes.fromhex(
    "31c0 8ed8 be407c"  # ds = 0, si = the message
    "ac 84c0 7410"  # next: al = [si++]; at its end go on
    "50 ba fd03 ec a820 74fb 58"  # until the transmitter is empty
    "ba f803 ee ebeb"  # send al; next
    "ba fd03 ec a801 74fb ba f803 ec"  # wait for a byte
    "3c72 740a"  # "r"?
    "ba 0406 b8 0020 ef f4 ebfd"  # ACPI: power off; halt
    "b0fe e664 f4 ebfd"  # keyboard controller: reset; halt
)


@pytest.fixture
def boot_disk(tmp_path: Path) -> Path:
    sector = bytearray(1 << 20)
    sector[: len(_CODE)] = _CODE
    sector[0x40:0x49] = b"HELLO\r\n> "
    sector[510:512] = b"\x55\xaa"
    path = tmp_path / "boot.raw"
    path.write_bytes(sector)
    return path
