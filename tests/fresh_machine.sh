#!/usr/bin/env bash
# Whether the README's first commands work on a machine that has nothing: a bare Debian, made by mmdebstrap, with Python, curl
# and a clone of what is committed here. Run it by hand, as root; it takes some minutes, and port 8000.
set -euo pipefail
cd "$(dirname "$0")/.."

! (: < /dev/tcp/127.0.0.1/8000) 2> /dev/null || { echo "Something listens at port 8000 already, which is tried here." && exit 1; }
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
root=$fresh/root

step() { printf '%4d s  %s\n' $SECONDS "$1"; }
megabytes() { du -sm "$root" | cut -f1; }

# What this machine needs in order to reach registries is no part of what is tried.
of_this_machine() {
    local file
    for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        [[ ! -e $file ]] || install -D -m 644 "$file" "$root$file"
    done
}

# Run commands in the clone there, with no other environment, mounts or processes than that machine's.
there() {
    unshare --mount --pid --fork --kill-child --mount-proc --root="$root" --wd=/parley \
        env -i DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt bash -euo pipefail -c "$1"
}

# The README's command that begins so, from its first such line.
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
    ($serve) > /log 2>&1 &
    curl --silent --fail --retry 600 --retry-delay 1 --retry-all-errors --output /dev/null localhost:8000/health/ready
    $ask > /answer 2> /dev/null
    uv run just chat 'What is the capital of France?' > /said 2> /dev/null
"
installed=$(($(megabytes) - before))
step "answered; it installed $installed MB"

cat "$root/answer" "$root/said"
grep -q '^event: done' "$root/answer" && grep -q Paris "$root/said"
step "the answer is right"

# The README's size has to be within a tenth of what was measured.
said=$(grep -oP 'installs all packages \(\K[0-9]+(?= MB on disk)' README.md)
((10 * (said > installed ? said - installed : installed - said) <= installed)) || { echo "The README says $said MB." && exit 1; }
step "the README's size, $said MB, is right"
