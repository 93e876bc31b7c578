"""A few steps of a denoiser on stored latents, as docs/latents.md shows how they are read."""

import torch

from pipeline.latents import LatentLoader, LatentStore

store = LatentStore.open("runs/latents")
channels = len(store.mean)
mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (store.mean, store.std))
denoiser = torch.nn.Conv2d(channels, channels, 3, padding=1)
optimizer = torch.optim.Adam(denoiser.parameters())
for batch in LatentLoader(store, global_batch_size=8, sample=True):
    clean = (batch.latents[batch.valid] - mean) / std
    noise = torch.randn_like(clean)
    loss = (denoiser((clean + noise) / 2**0.5) - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{len(store)} latents, loss {loss.item():.3f}")
