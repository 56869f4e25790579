#!/bin/sh
# Ask Parley: ./program.sh http://localhost:8000 '{"message":"What is the capital of France?"}'
exec curl --no-buffer --silent --show-error --fail-with-body -H 'Content-Type: application/json' -d "$2" "$1/chat"
