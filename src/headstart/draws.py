"""Random numbers as a hash of what they are for, so that neither the order of files, nor the number of
workers, nor a resume changes one.
"""

import hashlib
import unicodedata

__all__ = ["draw"]


def draw(seed: int, purpose: str, key: str, epoch: int = 0) -> float:
    """Draw a uniform number in [0, 1) that depends on these values alone (BLAKE2b, 53 bits).

    The key is taken in Unicode form NFC, so that a data set copied from a Mac draws the same.
    """
    key = unicodedata.normalize("NFC", key)
    text = f"{seed}\0{purpose}\0{epoch}\0{key}"
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which JSON may spell and no file is called
        data = text.encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 11) / (1 << 53)
