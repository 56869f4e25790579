# Each recipe installs what it needs. Settings come from the environment, or from a file `.env` (see .env.example).

set dotenv-load
set positional-arguments

# Let Python write bytecode: otherwise each process that a test starts compiles every library again, which takes 2 seconds.
export PYTHONDONTWRITEBYTECODE := ""

uv := env("UV", "uv")
hardened := "--read-only --cap-drop=all --security-opt no-new-privileges"
# podman's default image format drops the health check.
build := "podman build --format docker --label org.opencontainers.image.version=$(" + uv + " version --short)" + \
    " --label org.opencontainers.image.revision=$(git describe --always --dirty)"
pins := uv + " run --no-project --python '>=3.11' python -m tests.support.pins"
# Tests whose modules take seconds to import.
slow := "--ignore=tests/e2e --ignore=tests/contract/test_operations.py"
export := uv + " export -q --no-emit-project --no-annotate --no-header"

# Serve on PARLEY_HOST:PARLEY_PORT (127.0.0.1:8000)
serve:
    exec {{ uv }} run parley

# Talk to a running Parley: `just chat`, or `just chat "a question"`
chat *message:
    {{ uv }} run parley chat "$@"

# Run the tests: `just test`, or `just test -k something`; `-n0` runs them in one process, for a debugger
test *arguments:
    {{ uv }} run --group clients pytest --numprocesses=auto "$@"

# Run the tests that start no process and take less than 5 seconds each: about half a minute in total
test-quick *arguments:
    {{ uv }} run --group clients pytest --numprocesses={{ num_cpus() }} {{ slow }} -m 'not process and not long' "$@"

# One question at a time, because llama.cpp rounds differently if it computes several together.
# Ask the embedded model Parley's suite of questions, and report whether the answers got worse: see docs/evaluation.md
eval *options:
    {{ uv }} run parley eval tests/evals/embedded.yaml --baseline tests/evals/baseline.json --jobs 1 "$@"

# Run a fake upstream; the message names the fault to simulate: see docs/operations.md
faulty port="9000":
    {{ uv }} run python -m tests.support.faults "$@"

# Measure the CPU cost of a token, compared with the usual stack: `just bench`, or `just bench burst paced --rounds 5`
bench *options:
    {{ uv }} run --group bench python -m tests.bench.tokens "$@"

# Measure the embedded model's tokens per second, compared with llama.cpp's own server
bench-embedded:
    {{ uv }} run python -m tests.bench.embedded

# Measure twice the load that Parley can take, and clients that do not read
bench-load seconds="20":
    {{ uv }} run python -m tests.bench.overload "$@"
    {{ uv }} run python -m tests.bench.stuck "$@"

# Measure whether memory stays flat
bench-churn minutes="10":
    {{ uv }} run --group bench python -m tests.bench.churn "$@"

# Change the code in many small ways and list the changes that no test finds: `just mutate`, or `just mutate 'parley.chat.*'`
mutate *mutants:
    {{ uv }} run --group mutate mutmut run "$@"
    {{ uv }} run --group mutate mutmut results | sed '/not checked/d'

# Check the format, the lint rules, the types, the layers, and that all imported packages are declared
check:
    {{ uv }} run ruff format --check
    {{ uv }} run ruff check
    {{ uv }} run --group bench --group clients mypy
    {{ uv }} run lint-imports
    {{ uv }} run --group bench --group clients deptry src

# Format, and fix what the linter can fix
fmt:
    {{ uv }} run ruff format
    {{ uv }} run ruff check --fix

# Build the documentation site in dist/docs; a broken link or anchor is an error
docs:
    {{ uv }} run --group site sphinx-build --quiet --fresh-env --keep-going --fail-on-warning -c docs . dist/docs

# Write the tables in docs/ that are made from the code: settings, errors, metrics, fields
tables:
    {{ uv }} run python -m tests.support.tables

# Write the contract that the app serves to contracts/chat-api.yaml
contract:
    {{ uv }} run python -m tests.support.served > contracts/chat-api.yaml

# Save the contract as that of the release; run this only at a release: see contracts/README.md
release-contract:
    echo '# The contract of the last release; written by `just release-contract`, only at a release.' > contracts/released.yaml
    tail -n +2 contracts/chat-api.yaml >> contracts/released.yaml

# Build Parley's image: `just image`, or `just image --no-cache`
image *options:
    {{ build }} --target embedded --tag parley "$@" .

# Build the image without the embedded model, for use with an upstream
image-slim *options:
    {{ build }} --target slim --tag parley:slim "$@" .

# Serve from the image, at the same address and with the same settings; keys are passed as podman secrets
podman *options: image
    #!/usr/bin/env bash
    set -euo pipefail
    upstream=(OPENAI_API_KEY PARLEY_FALLBACK_API_KEY PARLEY_METRICS_KEY)
    callers=parley-PARLEY_API_KEYS # not `parley-keys`: that is the operator's own, see docs/deployment.md
    forget() { podman secret rm "$callers" "${upstream[@]/#/parley-}" &> /dev/null || true; }
    forget
    trap forget EXIT
    for key in "${upstream[@]}"; do
        [[ ${!key:-} ]] || continue
        podman secret create --env "parley-$key" "$key" > /dev/null
        set -- --secret "parley-$key,type=env,target=$key" "$@"
        unset "$key" # otherwise, `--env` below would pass it, too
    done
    if [[ ${PARLEY_API_KEYS:-}${PARLEY_API_KEYS_FILE:-} ]]; then # as a file, which podman does not store with the container
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

# Pin new dependencies, keep existing pins, and export the lock files that images install
lock:
    {{ uv }} lock
    {{ pins }} write
    {{ just_executable() }} export-locks .

# Install these files with `pip install --no-deps`: they list every package that Parley needs, and no package that it never imports.
# Export one requirements file per image layer to this folder
[private]
export-locks folder *options:
    {{ export }} --no-default-groups --group docs --extra server --extra otel {{ options }} -o "{{ folder }}/requirements.lock"
    {{ export }} --only-group embedded {{ options }} -o "{{ folder }}/requirements-embedded.lock"
    {{ export }} --only-group build {{ options }} -o "{{ folder }}/requirements-build.lock"

# Upgrade all packages, or the named ones and what they need: `just upgrade`, or `just upgrade litestar uvicorn`
upgrade *packages:
    #!/usr/bin/env bash
    set -euo pipefail
    {{ uv }} lock || test -e uv.lock # a requirement may contradict a pin, which is dropped below
    before=$(mktemp)
    cp pyproject.toml "$before"
    trap 'cp "$before" pyproject.toml' ERR
    {{ pins }} drop
    if (($#)); then {{ uv }} lock "${@/#/--upgrade-package=}"; else {{ uv }} lock --upgrade; fi
    {{ just_executable() }} lock

# Run the last commit's tests with the newest release of every package, even above the ceilings in pyproject.toml
newest *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    clone=$(mktemp -d)
    trap 'rm -rf "$clone"' EXIT
    git clone --quiet . "$clone"
    cd "$clone"
    sed -E -i 's/(==|>=)([0-9][^",<]*)(,<[0-9.]+)?( ;[^"]*)?"/>=\2\4"/g' pyproject.toml
    unset VIRTUAL_ENV
    {{ just_executable() }} upgrade
    git diff --unified=0 pyproject.toml | grep '^[-+]    "[^"]*=="\?' || true
    {{ just_executable() }} test "$@"
