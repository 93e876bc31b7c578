#!/usr/bin/env bash
# The contract of the image `postgres`, kept by the host's PostgreSQL: PGDATA, POSTGRES_USER,
# POSTGRES_PASSWORD, POSTGRES_DB; sockets in /var/run/postgresql; SIGINT ends sessions.
set -euo pipefail
serve=(postgres -D "$PGDATA" -k /var/run/postgresql)
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256 \
        --pwfile=<(printf %s "$POSTGRES_PASSWORD")
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    "${serve[@]}" -c listen_addresses= &
    until createdb -h /var/run/postgresql -U "$POSTGRES_USER" "$POSTGRES_DB"; do sleep 0.2; done
    kill %1
    wait
fi
exec "${serve[@]}" -c listen_addresses='*'
