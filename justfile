# Every recipe installs what it needs. Settings come from the environment, or from a file `.env` (see .env.example).

set dotenv-load
set positional-arguments

uv := env("UV", "uv")
hardened := "--read-only --cap-drop=all --security-opt no-new-privileges"
# podman's own format knows no health check.
build := "podman build --format docker --label org.opencontainers.image.version=$(" + uv + " version --short)" + \
    " --label org.opencontainers.image.revision=$(git describe --always --dirty)"
pins := uv + " run --no-project python -m tests.support.pins"
export := uv + " export -q --no-emit-project --no-annotate --no-header"

# Serve on PARLEY_HOST:PARLEY_PORT (127.0.0.1:8000)
serve:
    {{ uv }} run parley

# Talk to the Parley that serves: `just chat`, or `just chat "a question"`
chat *message:
    {{ uv }} run parley chat "$@"

# Run the tests: `just test`, or `just test -k something`
test *arguments:
    {{ uv }} run --group clients pytest "$@"

# Run an upstream that does wrong what the message names, for Parley to be tried on: see the README
faulty port="9000":
    {{ uv }} run python -m tests.support.faults "$@"

# Measure what a token costs, against the stack as it comes: `just bench`, or `just bench burst paced --rounds 5`
bench *options:
    {{ uv }} run --group bench python -m tests.bench.tokens "$@"

# Measure the embedded model's pace against llama.cpp's bare server
bench-embedded:
    {{ uv }} run python -m tests.bench.embedded

# Measure twice the load that it can bear, and clients that do not read
bench-load seconds="20":
    {{ uv }} run python -m tests.bench.overload "$@"
    {{ uv }} run python -m tests.bench.stuck "$@"

# Measure whether memory stays flat
bench-churn minutes="10":
    {{ uv }} run --group bench python -m tests.bench.churn "$@"

# Check the format, the linters, the types and the layers
check:
    {{ uv }} run ruff format --check
    {{ uv }} run ruff check
    {{ uv }} run --group bench --group clients mypy
    {{ uv }} run lint-imports

# Format, and mend what the linter can mend
fmt:
    {{ uv }} run ruff format
    {{ uv }} run ruff check --fix

# Write the contract that the app serves to contracts/chat-api.yaml
contract:
    {{ uv }} run python -m parley.contract > contracts/chat-api.yaml

# Keep the contract as the one that is released: part of a release, see contracts/README.md
release-contract:
    echo '# The contract of the last release; written by `just release-contract` at a release, and never else.' > contracts/released.yaml
    tail -n +2 contracts/chat-api.yaml >> contracts/released.yaml

# Build Parley's image: `just image`, or `just image --no-cache`
image *options:
    {{ build }} --target embedded --tag parley "$@" .

# Build it without the model, for an upstream
image-slim *options:
    {{ build }} --target slim --tag parley:slim "$@" .

# Serve from the image, at the same address and with the same variables; keys go in as podman's secrets
podman *options: image
    #!/usr/bin/env bash
    set -euo pipefail
    upstream=(OPENAI_API_KEY PARLEY_FALLBACK_API_KEY PARLEY_METRICS_KEY)
    callers=parley-PARLEY_API_KEYS # not `parley-keys`: that is the operator's own, see the README
    forget() { podman secret rm "$callers" "${upstream[@]/#/parley-}" &> /dev/null || true; }
    forget
    trap forget EXIT
    for key in "${upstream[@]}"; do
        [[ ${!key:-} ]] || continue
        podman secret create --env "parley-$key" "$key" > /dev/null
        set -- --secret "parley-$key,type=env,target=$key" "$@"
        unset "$key" # or --env would pass it on, too
    done
    if [[ ${PARLEY_API_KEYS:-}${PARLEY_API_KEYS_FILE:-} ]]; then # a file, of which podman keeps nothing in the container
        (tr , '\n' <<< "${PARLEY_API_KEYS:-}" && cat "${PARLEY_API_KEYS_FILE:-/dev/null}") |
            podman secret create "$callers" - > /dev/null
        set -- --secret "$callers,target=/parley-keys,uid=10001,mode=0400" "$@"
        unset PARLEY_API_KEYS
        export PARLEY_API_KEYS_FILE=/parley-keys
    fi
    if [[ ${PARLEY_MODEL_PATH:-} ]]; then
        PARLEY_MODEL_PATH=$(realpath "$PARLEY_MODEL_PATH")
        set -- --volume "$PARLEY_MODEL_PATH:$PARLEY_MODEL_PATH:ro" "$@"
    fi
    host=${PARLEY_HOST:-127.0.0.1} port=${PARLEY_PORT:-8000} drain=${PARLEY_DRAIN_TIMEOUT_S:-30}
    podman run --rm --name parley {{ hardened }} --memory 512m --stop-timeout $((${drain%.*} + 15)) \
        --publish "${host/localhost/127.0.0.1}:$port:$port" \
        --env 'PARLEY_*' --env 'OTEL_*' --env OPENAI_BASE_URL --env PARLEY_HOST=0.0.0.0 "$@" parley

# pip needs `--no-deps` for the files that this writes: they are complete, and name no package that nobody uses.
# Pin what pyproject.toml asks for, keep what is pinned, and export what a deployment installs: a file per image layer
lock:
    {{ uv }} lock
    {{ pins }} write
    {{ export }} --no-default-groups --group docs --extra otel -o requirements.lock
    {{ export }} --only-group embedded -o requirements-embedded.lock
    {{ export }} --only-group build -o requirements-build.lock

# Upgrade all packages, or these and what they need: `just upgrade`, or `just upgrade litestar uvicorn`
upgrade *packages: && lock
    test -e uv.lock || {{ uv }} lock
    {{ pins }} drop
    {{ uv }} lock {{ if packages == "" { "--upgrade" } else { "-P " + replace(packages, " ", " -P ") } }}
