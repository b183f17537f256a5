#!/usr/bin/env bash
# One question, its answer as text.
#
#   ask.sh [-c CONVERSATION] [QUESTION...]     without a question, standard input is read
#
# CHATGPT_URL is where the service is, CHATGPT_KEY_FILE the file that holds a client key.
# The answer goes to standard output when it is whole; otherwise the reason goes to standard error, and the exit status
# is not 0. A try that failed is sent again where that asks nothing twice.
set -euo pipefail

url=${CHATGPT_URL:-http://127.0.0.1:8080}
key_file=${CHATGPT_KEY_FILE:-data/client_key}

fields=()
while getopts c: option; do
  case $option in
    c) fields+=(--data-urlencode "conversation=$OPTARG") ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ $# -gt 0 ]; then
  printf '%s' "$*" > "$folder/question"
else
  cat > "$folder/question"
fi

headers=(-H 'Accept: text/plain' -H "Idempotency-Key: $(openssl rand -hex 16)")
if [ -r "$key_file" ]; then
  # from a file, because other users of the machine can read a command's arguments
  printf 'Authorization: Bearer %s' "$(cat "$key_file")" > "$folder/key"
  headers+=(-H "@$folder/key")
fi

# --retry is for a service that is busy; the loop for a connection that broke
for pause in 1 2 4 0; do
  if status=$(curl -sS --retry 5 -o "$folder/answer" -w '%{http_code}' "${headers[@]}" \
    ${fields[@]+"${fields[@]}"} --data-urlencode "prompt@$folder/question" "$url/ask"); then
    break
  fi
  sleep "$pause"
done
if [ "$status" != 200 ]; then
  cat "$folder/answer" >&2 2> /dev/null || true
  exit 1
fi
cat "$folder/answer"
