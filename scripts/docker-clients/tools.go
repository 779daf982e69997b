//go:build tools

// Package tools names Docker's own clients, which the tests build and use. Two modules that they need on other
// systems, or for `docker compose publish`, are stood in for by empty ones of the same shape.
package tools

import (
	_ "github.com/docker/buildx/cmd/buildx"
	_ "github.com/docker/cli/cmd/docker"
	_ "github.com/docker/compose/v5/cmd"
)
