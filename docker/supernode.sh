#!/bin/sh
# Starts a site from its environment: SITE, MODALITY, PART, SUPERLINK; FILE if it has data of its
# own; SUPERNODE=flower-supernode for Flower's command instead of utmp-client.
set -eu

node="modality=\"$MODALITY\" part=$PART"
if [ -n "${FILE:-}" ]; then
    node="$node data=\"$FILE\""
fi
if [ -n "${INSECURE:-}" ]; then
    set -- --insecure
else
    set -- --root-certificates /credentials/ca.crt \
        --auth-supernode-private-key "/credentials/$SITE.key"
fi
exec "${SUPERNODE:-utmp-client}" --superlink "$SUPERLINK" --port 9094 --node-config "$node" "$@"
