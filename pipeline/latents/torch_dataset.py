"""The store as a plain torch dataset; its order is then the `DataLoader`'s, not ours."""

from typing import Any

import torch
from torch.utils.data import Dataset

from pipeline.latents.store import LatentStore


class LatentDataset(Dataset[dict[str, Any]]):
    """Item i: `key`, each tensor [Z, h, w] in the store's type, and the copied columns."""

    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> dict[str, Any]:
        latent = self.store[number]
        # A copy: mapped memory is read-only, which torch has no notion of.
        tensors = {name: torch.tensor(values) for name, values in latent.tensors.items()}
        return {"key": latent.key, **tensors, **latent.columns}
