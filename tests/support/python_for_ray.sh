#!/bin/sh
# What Ray of a warm job takes for its Python (warm_workers.py): WARM_PYTHON is the real one.
exec "$WARM_PYTHON" -I -S "$(dirname "$0")/python_for_ray.py" "$@"
