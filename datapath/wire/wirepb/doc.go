// Package wirepb is the generated code of layouts.proto, the messages and calls between the nodes of
// a cluster. Package wire speaks them; nobody else needs it.
package wirepb

//go:generate go run ./generate layouts.proto
