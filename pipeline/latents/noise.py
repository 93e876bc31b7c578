"""Standard normal noise that belongs to a key, not to a batch, a rank or a moment.

The raw stream of numpy's Philox generator is stable across numpy's versions by its own promise; its
`standard_normal` is not, so the normals are made here (Box & Muller 1958).
"""

import hashlib

import numpy as np
import numpy.typing as npt


def normal_noise(
    key: str, seed: int, shape: tuple[int, ...], stream: str = ""
) -> npt.NDArray[np.float32]:
    """Standard normals of `shape`: a function of (key, seed, stream) only."""
    count = int(np.prod(shape))
    pairs = (count + 1) // 2
    raw = _generator(key, seed, stream).random_raw(pairs)
    # 32 bits each for radius and angle: the radius reaches sqrt(2 * 32 ln 2) = 6.7.
    radius_bits = (raw >> np.uint64(32)).astype(np.float64) + 1.0
    angle_bits = (raw & np.uint64(0xFFFFFFFF)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log(radius_bits / 2.0**32))
    angle = angle_bits * (2.0 * np.pi / 2.0**32)
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normals[:count].reshape(shape).astype(np.float32)


def coin(key: str, seed: int, stream: str = "") -> bool:
    """A fair coin: a function of (key, seed, stream) only."""
    return bool(_generator(key, seed, stream).random_raw() >> 63)


def _generator(key: str, seed: int, stream: str) -> np.random.Philox:
    digest = hashlib.blake2b(f"{seed}\0{stream}\0{key}".encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
