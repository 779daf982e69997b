// Package rosetta stands in for the module of this name: it matters on macOS alone.
package rosetta

import "runtime"

func Available() bool { return false }

func Enabled() bool { return false }

func NativeArch() string { return runtime.GOARCH }
