#!/bin/sh
# Makes golden.jsonl.gz anew. Needs Go and its module proxy.
set -e
cd "$(dirname "$0")"
go run . ../../kube-tables/data/schema.json.gz "${1:-3000}" | gzip -9n > golden.jsonl.gz
