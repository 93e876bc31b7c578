# An operator with S3, Ray and Prometheus: docs/operations.md, day 1 and what there is to look at.
python -m jobs.doctor --storage s3://runs
python -m jobs.pack --source s3://archive/photos --output s3://datasets/photos --append
python -m jobs.verify --dataset s3://datasets/photos
python -m jobs.submit -- python -m jobs.train --data s3://datasets/photos --run v1 --storage s3://runs
python -m jobs.submit --logs -- python -m jobs.train --data s3://datasets/photos --run v1 --storage s3://runs
python -m jobs.submit --list
python -m jobs.encode --model models:/v1@candidate --data s3://datasets/photos --output s3://latents/photos --tracking.pushgateway http://localhost:9091
python -m jobs.watch --url http://localhost:9090 --once
python -m jobs.verify --store s3://latents/photos
python -m jobs.stores --store s3://latents/photos --gc
