# A researcher with a folder of photographs: what README and docs/training.md show, in their order.
vae
vae train --help
vae pack --source photos --output runs/photos --holdout 0.2 --dry-run
vae pack --source photos --output runs/photos --holdout 0.2
vae train --data runs/photos/train --run first --recipe photos-64 --dry-run
vae train --data runs/photos/train --run first --recipe photos-64
vae train --data runs/photos/train --run first --recipe photos-64
vae evaluate --model first --data runs/photos/holdout --output runs/report
vae explain --run first --output runs/explained
vae train --data runs/photos/train --run betas --recipe photos-64 --sweep objective.beta=0.5,4
vae evaluate --model first --data runs/photos/holdout --compare betas-beta-4 --output runs/report
vae models
vae models --promote models:/first@candidate
vae pull --model models:/first@champion --output runs/pulled
