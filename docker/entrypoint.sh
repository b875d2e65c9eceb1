#!/bin/sh
# Runs its arguments, with --keys where somebody has put keys into /keys, as docker-compose.yml's profile "secure" does.
set -eu
if [ -n "$(find /keys -name '*.key_secret')" ]; then
    set -- "$@" --keys /keys
fi
exec "$@"
