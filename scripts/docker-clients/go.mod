module naru.dev/tools

go 1.26.8

require (
	github.com/docker/buildx v0.35.0
	github.com/docker/compose/v5 v5.6.0
)

require (
	dario.cat/mergo v1.0.2 // indirect
	github.com/docker/cli v29.8.2+incompatible // indirect
	github.com/docker/go-metrics v0.1.0 // indirect
	github.com/go-jose/go-jose/v4 v4.1.8 // indirect
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/moby/swarmkit/v2 v2.0.0 // indirect
	github.com/pkg/browser v0.0.0-20240102092130-5ac0b6a4141c // indirect
	github.com/tonistiigi/go-rosetta v0.0.0-00010101000000-000000000000 // indirect
	golang.org/x/term v0.47.0 // indirect
	google.golang.org/genproto v0.0.0-20260825221802-da73d73af1c5 // indirect
)

replace github.com/tonistiigi/go-rosetta => ./go-rosetta
replace github.com/DefangLabs/secret-detector => ./secret-detector
