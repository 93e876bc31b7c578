"""Do the stored latents follow from the images? A sample of them, encoded once more."""

from dataclasses import dataclass, field

import numpy as np

from pipeline import storage
from pipeline.data.dataset import Dataset
from pipeline.encoding.cutting import place_of
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.shard_batches import encode_again
from pipeline.errors import StoreError
from pipeline.latents.store import LatentStore
from pipeline.vae.vae import VAE

# bfloat16 keeps 8 bits; another kind of hardware may round each of them otherwise.
_TOLERANCE = 2.0**-6


@dataclass
class Reencoded:
    """What a second encoding gave: `equal` of `images` to the last bit, and the rest's distance."""

    images: int = 0
    equal: int = 0
    largest_difference: float = 0.0
    problems: list[str] = field(default_factory=list)


def reencode(vae: VAE, dataset: Dataset, store: LatentStore, count: int, seed: int) -> Reencoded:
    """Encodes `count` random images again, each in the batch it was encoded in.

    On the same kind of hardware they are equal to the last bit; elsewhere a value may differ by
    2^-6 of its size plus its channel's deviation. More is a problem. Raises `StoreError` when the
    model or the dataset is not the store's.
    """
    identity, snapshot = store.snapshot.identity, store.snapshot
    if (vae.digest, dataset.digest) != (identity.model_digest, snapshot.dataset):
        raise StoreError(
            f"{store.url}: was made by model {identity.model_digest[:16]} from dataset "
            f"{snapshot.dataset[:16]}, not by model {str(vae.digest)[:16]} from "
            f"{dataset.digest[:16]}. Name the model and the dataset that its store.json names."
        )
    options, found = identity.options, Reencoded()
    shards = {shard.sha256: shard for shard in dataset.shards}
    dice = np.random.default_rng(seed)
    chosen = dice.choice(len(store), min(count, len(store)), replace=False)
    deviation = np.maximum(np.array(store.std), 1e-6)[:, None, None]
    for number in sorted(chosen.tolist()):
        at, position = store.place(number)
        rows = store.selection.rows[at]
        held, first = rows.part.held.array, rows.number_of(position) * options.batch_size
        together = held[first : first + options.batch_size].tolist()
        record, latent = shards[snapshot.sources[at]], store[number]
        place = place_of(vae, options, rows.part)
        with exact_numerics():
            batch = encode_again(vae, dataset, record, options, place, positions=together)
        again, row = batch.encoded, together.index(position)
        found.images += 1
        differences = {
            name: np.abs(value.astype(np.float64) - again.tensors[name][row])
            for name, value in latent.tensors.items()
        }
        worst = max(float(difference.max()) for difference in differences.values())
        found.equal += worst == 0
        found.largest_difference = max(found.largest_difference, worst)
        far = any(
            bool((difference > _TOLERANCE * (np.abs(latent.tensors[name]) + deviation)).any())
            for name, difference in differences.items()
        )
        if batch.samples[row].key != latent.key or far:
            found.problems.append(
                f"{storage.shown(rows.url)}: the latent of {latent.key!r} differs by {worst:.3g} "
                "from its image's encoded again. Delete the file, its receipt and store.json, and "
                "run the same jobs.encode again."
            )
    return found
