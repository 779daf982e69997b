# What a person types. Everything that is needed is installed by scripts/setup.sh.
export PATH := $(CURDIR)/.tools/bin:$(PATH)
CARGO ?= cargo

.PHONY: demo build test check bench setup clean

demo: build ## Take examples/shop through the whole loop and show the figures
	target/release/naru demo --summary demo-summary.json

build: setup
	$(CARGO) build --release --locked -p naru

test: setup ## All tests, on real git, kubectl, skopeo, containers
	$(CARGO) build --locked -p naru
	$(CARGO) test --locked --workspace --no-fail-fast

check: setup ## Format, lints, the walls of the house, dead links
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) xtask check

bench: build ## Speed and memory, each with its peer in the same run
	scripts/setup.sh bench
	$(CARGO) xtask bench $(BENCH)

setup:
	@scripts/setup.sh

clean:
	$(CARGO) clean
