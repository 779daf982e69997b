#!/usr/bin/env bash
# Brings the actions that GitHub publishes into a directory as `naru serve --actions-dir` wants them, on a machine
# that reaches github.com:
#
#   scripts/published-actions.sh /srv/actions
#   NARU_PUBLISHED_ACTIONS=/srv/actions cargo test -p naru-actions-tests --test published
#
# More of them: scripts/published-actions.sh DIR owner/name@ref ... ; from elsewhere: ACTIONS_FROM=https://mirror.
set -euo pipefail
directory=${1:?say where: scripts/published-actions.sh DIR [owner/name@ref ...]}
shift
from=${ACTIONS_FROM:-https://github.com}
actions=("$@")
if [ ${#actions[@]} -eq 0 ]; then
  actions=(
    actions/checkout@v4 actions/upload-artifact@v4 actions/download-artifact@v4 actions/cache@v4
    actions/setup-node@v4 actions/github-script@v7
  )
fi
for action in "${actions[@]}"; do
  name=${action%@*} ref=${action##*@}
  if [ "$name" = "$action" ] || [[ $name != */* ]]; then
    echo "\`$action\` is not owner/name@ref" >&2
    exit 2
  fi
  target=$directory/$name@$ref
  if [ -d "$target" ]; then
    echo "$action is there"
    continue
  fi
  echo "fetching $action"
  mkdir -p "$(dirname "$target")"
  rm -rf "$target.new"
  # A ref may also be a commit, which cannot be cloned by its name.
  git init --quiet "$target.new"
  git -C "$target.new" fetch --quiet --depth 1 "$from/$name" "$ref"
  git -C "$target.new" checkout --quiet --detach FETCH_HEAD
  mv "$target.new" "$target"
done
