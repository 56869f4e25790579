# Every recipe installs what it needs. Settings come from the environment, or from a file `.env` (see .env.example).

set dotenv-load
set positional-arguments

uv := env("UV", "uv")

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

# Resolve the dependencies anew, and export what a deployment installs, with hashes
lock:
    {{ uv }} lock
    {{ uv }} export -q --no-default-groups --group embedded --group docs --no-emit-project --no-annotate --no-header -o requirements.lock
