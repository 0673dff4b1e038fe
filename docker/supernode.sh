#!/bin/sh
# A SuperNode as its environment says: SITE, MODALITY, PART, SUPERLINK, and FILE if it brings data.
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
exec flower-supernode --superlink "$SUPERLINK" --node-config "$node" "$@"
