#!/bin/sh
# A site as its environment says: SITE, MODALITY, PART, SUPERLINK, and FILE if it brings data.
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
exec utmp-client --superlink "$SUPERLINK" --port 9094 --node-config "$node" "$@"
