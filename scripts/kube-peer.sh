#!/bin/bash
# Builds kube-apiserver and etcd from Go modules into .tools/bin, as the peers of `make bench`: `bench cluster`
# measures them if they are there. Takes Go, a few minutes and 3 GB for caches; nothing else needs it.
set -euo pipefail
cd "$(dirname "$0")/.."
kubernetes=v1.35.0
etcd=v3.6.6
# Where the staging modules of that Kubernetes are published.
staging=v0.35.0
bin=$PWD/.tools/bin
command -v go > /dev/null || { echo "Go is missing: scripts/setup.sh installs it" >&2; exit 1; }
mkdir -p "$bin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! [ -x "$bin/etcd" ]; then
  mkdir "$work/etcd" && cd "$work/etcd"
  go mod init peer > /dev/null 2>&1
  go get "go.etcd.io/etcd/server/v3@$etcd"
  CGO_ENABLED=0 nice -n 19 go build -ldflags '-s -w' -o "$bin/etcd" go.etcd.io/etcd/server/v3
fi

if ! [ -x "$bin/kube-apiserver" ]; then
  mkdir "$work/kubernetes" && cd "$work/kubernetes"
  go mod init peer > /dev/null 2>&1
  # Within Kubernetes' own repository these modules are folders; outside they are modules of their own.
  source=$(go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
  sed -n 's#^\s*\(k8s.io/[a-z0-9-]*\) => \./staging/.*#\1#p' "$source" | while read -r module; do
    go mod edit -replace "$module=$module@$staging"
  done
  go get "k8s.io/kubernetes/cmd/kube-apiserver@$kubernetes"
  CGO_ENABLED=0 nice -n 19 go build -o "$bin/kube-apiserver" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes" k8s.io/kubernetes/cmd/kube-apiserver
fi
"$bin/etcd" --version | head -1
"$bin/kube-apiserver" --version
