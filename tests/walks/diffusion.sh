# A trainer of diffusion models who wants latents: docs/latents.md, with what is appended meanwhile.
vae pack --source photos --output runs/photos
vae train --data runs/photos --run first --recipe photos-64
vae encode --model models:/first@candidate --data runs/photos --output runs/latents --columns label --dry-run
vae encode --model models:/first@candidate --data runs/photos --output runs/latents --columns label
vae verify --store runs/latents --sample 100
vae stores --store runs/latents --keys
vae decode --store runs/latents --output runs/images --limit 100 --sheet
vae decode --store runs/latents --output runs/walk --interpolate cats/001 dogs/007
vae decode --store runs/latents --output runs/edit --edit cats dogs --keys cats/001
python train.py
vae pack --source photos tomorrow --output runs/photos --append
vae encode --model models:/first@candidate --data runs/photos --output runs/latents --columns label
vae verify --store runs/latents
vae stores --store runs/latents --gc --delete
vae export --store runs/latents --output runs/tars --format safetensors
