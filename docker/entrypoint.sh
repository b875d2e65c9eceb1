#!/bin/sh
# Runs its arguments, with --keys where somebody has put keys into /keys, as docker-compose.yml's profile "secure" does.
# Of feedmill's commands, those that talk to servers take it; a trainer has to.
set -eu
if [ -n "$(find /keys -name '*.key_secret')" ]; then
    case "$1 ${2-}" in
        "feedmill serve" | "feedmill bench" | "feedmill monitor" | "feedmill show" | "feedmill stat" | "feedmill bridge" | python*)
            set -- "$@" --keys /keys
            ;;
    esac
fi
exec "$@"
