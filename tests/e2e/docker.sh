#!/usr/bin/env bash
# The image and the Compose files on a real engine: builds, trains on one machine with three and six
# clients, then on a coordinator and sites that reach nothing but it. About ten minutes.
#
#   tests/e2e/docker.sh                    # or only some parts of it: machine, sites, laptop
#   BASE_IMAGE=debian-with-python BUILD_ARGS="--build-arg PIP_NO_INDEX=1" tests/e2e/docker.sh
#
# IMAGE=name takes an image that is there instead of building one.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! docker info > /dev/null 2>&1; then
    echo "skipped: no Docker engine"
    exit 0
fi
if docker compose version > /dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi

parts=" ${*:-machine sites laptop} "
project=utmp-e2e-$$
port=${PORT:-18000}
work=$(mktemp -d)
tiny=(
    rounds=3 dataset.num_items=240 dataset.num_speakers=24 model.width=10 model.heads=2
    model.layers=1 model.decoder_layers=1 client.local_epochs=1
)
# Not as root, which reads every key.
owner=$(id -u):$(id -g)
if [ "$(id -u)" = 0 ]; then
    owner=1000:1000
    chown "$owner" "$work"
fi
cat > "$work/env" << END
UID=${owner%:*}
GID=${owner#*:}
END

wanted() { [[ $parts == *" $1 "* ]]; }
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Compose, as the README has it, in a project of its own.
one_machine() {
    CREDENTIALS=$work/credentials PUBLISH=127.0.0.1:$port \
        "${compose[@]}" --env-file "$work/env" -p "$project" -f docker/compose.yml "$@"
}
development() {
    "${compose[@]}" --env-file "$work/env" -p "$project-dev" -f docker/compose.dev.yml "$@"
}
coordinator() {
    CREDENTIALS=$work/credentials SITES=$work/public PUBLISH=$port DATA=$work/evaluation \
        "${compose[@]}" --env-file "$work/env" -p "$project-server" \
        -f docker/compose.server.yml "$@"
}
# site NAME COMMAND…
site() {
    local name=$1 supernode=utmp-client
    shift
    # One of them does it with Flower's own command.
    [ "$name" = vision-0 ] && supernode=flower-supernode
    SUPERNODE=$supernode SITE=$name MODALITY=${name%-*} PART=${name##*-} SUPERLINK=coordinator:$port \
        CREDENTIALS=$work/credentials/sites/$name DATA=$work/$name FILE=/data/$name.safetensors \
        "${compose[@]}" --env-file "$work/env" -p "$project-$name" -f docker/compose.site.yml \
        -f "$work/hosts.yml" "$@"
}
sites=(language-0 audio-0 vision-0)

# A command of the image on $work, as its owner.
tool() { docker run --rm --user "$owner" --volume "$work:/out" --workdir /out "$IMAGE" "$@"; }
container() { docker ps --quiet --filter "label=com.docker.compose.project=$1" --filter "label=com.docker.compose.service=$2"; }

stop() {
    status=$?
    set +e
    if [ "$status" != 0 ]; then
        for each in $(docker ps --all --quiet --filter "name=$project"); do
            docker inspect --format '---- {{.Name}} {{.State.Status}} {{.State.ExitCode}}' "$each"
            docker logs --tail 80 "$each" 2>&1
        done
    fi
    if [ -f "$work/hosts.yml" ]; then
        for name in "${sites[@]}"; do
            site "$name" down --volumes > /dev/null 2>&1
        done
    fi
    coordinator down --volumes > /dev/null 2>&1
    development down --volumes > /dev/null 2>&1
    one_machine down --volumes --remove-orphans > /dev/null 2>&1
    rm -rf "$work"
    exit "$status"
}
trap stop EXIT

# expect_summary VOLUME RUN CLIENTS: three rounds, three modalities, so many clients.
expect_summary() {
    docker run --rm --user "$owner" --volume "$1:/runs:ro" "$IMAGE" python -c "
import json, pathlib
run = pathlib.Path('/runs/$2')
summary = json.loads((run / 'summary.json').read_text())
rounds = [json.loads(line) for line in (run / 'rounds.jsonl').read_text().splitlines()]
assert summary['rounds'] == 3 == len(rounds), summary
assert list(summary['test']) == ['multimodal', 'language', 'audio', 'vision'], summary['test']
assert all(sum(each['clients'].values()) == $3 for each in rounds), rounds
print('$2:', rounds[-1]['clients'], summary['test']['multimodal'])
"
}

# expect_healthy PROJECT: every service that stays is healthy, by its own account. A site whose
# SuperLink went away before it cannot sign off, and has to wait a minute before it is let in again.
expect_healthy() {
    local each
    for _ in $(seq 120); do
        states=$(for each in $(docker ps --quiet --filter "label=com.docker.compose.project=$1"); do
            docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{end}}' "$each"
        done | grep . | sort | uniq --count)
        [[ $states == *starting* || $states == *unhealthy* || -z $states ]] || break
        sleep 1
    done
    echo "health:" $states
    [[ $states == *healthy* && $states != *unhealthy* && $states != *starting* ]] ||
        fail "services of $1 are not healthy"
}

if [ -z "${IMAGE:-}" ]; then
    IMAGE=ha-fedformer:e2e
    say "build $IMAGE"
    # shellcheck disable=SC2086
    docker build --file docker/Dockerfile --tag "$IMAGE" \
        ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} ${BUILD_ARGS:-} . > "$work/build.log" 2>&1 ||
        { tail -n 30 "$work/build.log"; fail "the image does not build"; }
fi
export IMAGE
docker image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "image: %.2f GB\n", $1 / 1e9}'

tool utmp-credentials out=credentials "hosts=[superlink,coordinator,localhost,127.0.0.1]" \
    clients.language=1 clients.audio=1 clients.vision=1 > /dev/null

if wanted machine; then
    say "one machine, three clients"
    tool utmp-compose clients.default=1 | diff - docker/compose.clients.yml ||
        fail "docker/compose.clients.yml is not what utmp-compose writes"
    one_machine -f docker/compose.clients.yml up -d
    expect_healthy "$project"
    say "train"
    one_machine -f docker/compose.clients.yml run --rm -T train "${tiny[@]}" run_dir=runs/three
    expect_summary "${project}_runs" three 3
    say "a run that fails says so"
    if one_machine -f docker/compose.clients.yml run --rm -T train rounds=0; then
        fail "a run that failed exits with 0"
    fi
    docker exec "$(container "$project" audio-0)" sh -c '! touch /app/x /opt/venv/x && id -u' |
        grep --quiet --line-regexp "${owner%:*}" || fail "a site runs as somebody else"
    one_machine -f docker/compose.clients.yml down

    say "one machine, six clients, on the same database"
    tool utmp-credentials out=credentials clients.language=3 clients.audio=2 clients.vision=1 \
        > /dev/null
    tool utmp-compose clients.language=3 clients.audio=2 clients.vision=1 > "$work/six.yml"
    one_machine -f "$work/six.yml" up -d
    expect_healthy "$project"
    one_machine -f "$work/six.yml" logs --no-color register
    one_machine -f "$work/six.yml" run --rm -T train "${tiny[@]}" run_dir=runs/six
    expect_summary "${project}_runs" six 6
    say "down"
    one_machine -f "$work/six.yml" down --volumes
fi

if wanted sites; then
    say "a coordinator and three sites with their own data, a network each"
    tool utmp-prepare format=synthetic out=shards clients.default=1 | tail -n 2
    mkdir -p "$work/public" "$work/evaluation"
    cp "$work/shards/"{manifest.json,validation.safetensors,test.safetensors} "$work/evaluation"
    cat > "$work/hosts.yml" << END
services:
  site:
    extra_hosts: ["coordinator:host-gateway"]
END
    for name in "${sites[@]}"; do
        mkdir "$work/$name"
        cp "$work/shards/$name.safetensors" "$work/$name"
        cp "$work/credentials/sites/$name/$name.pub" "$work/public"
    done
    chmod -R a+rX "$work/public" "$work/evaluation" "$work/"*-0
    coordinator up -d
    expect_healthy "$project-server"
    for name in "${sites[@]}"; do
        site "$name" up -d
        expect_healthy "$project-$name"
    done
    site vision-0 logs --no-color | grep --quiet 'Starting Flower SuperNode' &&
        ! docker top "$(container "$project-vision-0" site)" | grep --quiet client.supernode ||
        fail "vision-0 is no plain flower-supernode"
    site=$(container "$project-audio-0" site)
    for other in language-0 vision-0; do
        address=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' \
            "$(container "$project-$other" site)")
        docker exec "$site" python -c "
import socket
# Refused would mean that it was reached.
try: socket.create_connection(('$address', 9094), timeout=3)
except TimeoutError: print('audio-0 does not reach $other')
" | grep 'does not reach' || fail "audio-0 reaches $other"
    done
    docker exec -i "$site" python - "$port" << 'END' || fail "a site can operate the SuperLink"
import http.client, ssl, sys

trusted = ssl.create_default_context(cafile="/credentials/ca.crt")
for path, expected in {
    "/health": 405,
    "/v1/fleet/pull-messages": 415,  # the SuperLink's own answer
    "/v1/control/start-run": 404,
    "/v1/control/register-node": 404,
    "/v1/runtime/acquire-task": 404,
    "/v1/fleet/../control/start-run": 404,
    "/v1/fleet/%2e%2e/control/start-run": 404,
    "/v1/fleet/..%2fcontrol%2fstart-run": 404,
    "//v1/control/start-run": 404,
    "/openapi.json": 404,
}.items():
    connection = http.client.HTTPSConnection("coordinator", int(sys.argv[1]), context=trusted)
    connection.request("POST", path, b"", {"Content-Type": "application/x-protobuf"})
    status = connection.getresponse().status
    print(path, status)
    assert status == expected, (path, status, expected)
END
    [ -z "$(docker port "$site")" ] || fail "a site publishes a port"
    say "train"
    coordinator run --rm -T train "${tiny[@]:0:1}" "${tiny[@]:3}" dataset=shards dataset.path=/data \
        clients.default=1 run_dir=runs/sites
    expect_summary "${project}-server_runs" sites 3
    say "a key that is not registered stays out"
    tool utmp-credentials out=credentials clients.audio=3 > /dev/null
    cp -r "$work/audio-0" "$work/audio-2"
    sites+=(audio-2)
    site audio-2 up -d
    sleep 20
    site audio-2 logs --no-color | grep 'Exit Code: 305' || fail "audio-2 got in"
fi

if wanted laptop; then
    say "a laptop, without keys"
    development up -d
    development run --rm -T train "${tiny[@]}" run_dir=runs/laptop
    expect_summary "${project}-dev_runs" laptop 3
fi
say "passed"
