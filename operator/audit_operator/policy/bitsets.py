"""Sets of small numbers as the bits of one integer: a question to a thousand rules is a handful of operations."""

from collections.abc import Iterable, Iterator


def mask(indices: Iterable[int]) -> int:
    """The integer with these bits set; linear in its length, unlike setting them one by one."""
    numbers = list(indices)
    if len(numbers) <= 1:
        return 1 << numbers[0] if numbers else 0
    buffer = bytearray(max(numbers) // 8 + 1)
    for number in numbers:
        buffer[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(buffer, "little")


def positions(bits: int) -> Iterator[int]:
    """The set bits, lowest first."""
    offset = 0
    for byte in bits.to_bytes((bits.bit_length() + 7) // 8, "little"):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield offset + bit
        offset += 8
