#!/usr/bin/env bash
# A summary of each file, beside it as FILE.summary; for a cron job.
#
#   summarise.sh FILE...
#
# A summary is written when it is whole, and only where the file is newer than the one that is there. The exit status is
# not 0 where one could not be made. ask.sh says how the service is found.
set -euo pipefail

here=$(dirname "$0")
status=0
for file in "$@"; do
  summary=$file.summary
  if [ "$summary" -nt "$file" ]; then
    continue
  fi
  draft=$(mktemp "$summary.XXXXXX")
  if { echo 'Summarise this in three sentences:'; cat "$file"; } | "$here/ask.sh" > "$draft"; then
    mv "$draft" "$summary"
  else
    rm -f "$draft"
    echo "$file: no summary" >&2
    status=1
  fi
done
exit "$status"
