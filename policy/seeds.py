"""Seeds: a sample depends only on its own prompt and seed, never on the other samples of its batch."""

from hashlib import blake2b


def member_seed(run_seed: int, prompt_id: str, visit: int, member: int) -> int:
    """The 63-bit seed of one member of one visit to one prompt; the same on every machine."""
    key = f"{run_seed}/{prompt_id}/{visit}/{member}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1
