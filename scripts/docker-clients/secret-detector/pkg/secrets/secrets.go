// Package secrets stands in for the module of this name, of which only `docker compose publish` makes use.
package secrets

import "io"

type DetectedSecret struct{ Type, Key, Value string }

type Detector interface {
	ScanMap(values map[string]string) ([]DetectedSecret, error)
}

type Scanner interface {
	ScanFile(path string) ([]DetectedSecret, error)
	ScanReader(reader io.Reader) ([]DetectedSecret, error)
}
