#!/usr/bin/env bash
# Try the README's first commands on a bare Debian, made by mmdebstrap, that has only Python, curl and a clone of the last
# commit; check the size and the time that the README states. Run this by hand, as root. It takes some minutes and uses port 8000.
set -euo pipefail
cd "$(dirname "$0")/.."

! (: < /dev/tcp/127.0.0.1/8000) 2> /dev/null || { echo "Port 8000, which this script needs, is in use." && exit 1; }
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
root=$fresh/root

step() { printf '%4d s  %s\n' $SECONDS "$1"; }
megabytes() { du -s --block-size=1MB "$root" | cut -f1; }

# Copy what this machine needs to reach its package registries.
of_this_machine() {
    local file
    for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [[ ! -e $file ]] || install -D -m 644 "$file" "$root$file"
    done
}

# Run commands in the bare Debian, in the clone, with its own environment, mounts and processes.
there() {
    unshare --mount --pid --fork --kill-child --mount-proc --root="$root" --wd=/parley \
        env -i DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt bash -euo pipefail -c "$1"
}

# Print the README's first command that begins with a text.
command_of_readme() { grep -m1 -- "^$1" README.md | sed 's/^\$ //'; }

mmdebstrap --quiet --variant=apt --include=python3,python3-venv,ca-certificates,curl bookworm "$root"
of_this_machine
git clone --quiet . "$root/parley"
step "a bare Debian of $(megabytes) MB"

there 'apt-get update -qq && apt-get install -qq --no-install-recommends -o Dpkg::Use-Pty=0 libgomp1 > /dev/null'
before=$(megabytes)
serve=$(command_of_readme 'pip install uv && uv run parley')
ask=$(command_of_readme '\$ curl -N')
step "$serve"
there "
    python3 -m venv .venv
    . .venv/bin/activate
    SECONDS=0
    ($serve) > /log 2>&1 &
    curl --silent --fail --retry 600 --retry-delay 1 --retry-all-errors --output /dev/null localhost:8000/health/ready
    echo \$SECONDS > /ready
    $ask > /answer 2> /dev/null
    echo \$SECONDS > /answered
    uv run just chat 'What is the capital of France?' > /said 2> /dev/null
"
installed=$(($(megabytes) - before))
answered=$(< "$root/answered")
step "$installed MB installed; ready after $(< "$root/ready") s, answered after $answered s"

cat "$root/answer" "$root/said"
grep -q '^event: done' "$root/answer" && grep -q Paris "$root/said"
step "the answer is right"

# The README's size must be within a tenth of the measured one, and the first answer must not come later than it says.
size=$(grep -oP 'installs all packages \(\K[0-9]+(?= MB on disk)' README.md)
longest=$(grep -oP 'first answer comes within \K[0-9]+(?= seconds)' README.md)
((10 * (size > installed ? size - installed : installed - size) <= installed)) || { echo "The README says $size MB." && exit 1; }
((answered <= longest)) || { echo "The README says at most $longest s." && exit 1; }
step "the README is right: $size MB, at most $longest s"
