// Package arch holds the repository to its architecture: which package may import which, how long
// files and functions may grow, and that each package says what it is for.
//
// The rules are data (Lunar); Check reads the sources of a tree, whatever their build tags, and
// returns what breaks them. It is used by this package's own test, so that `go test ./...` fails on
// an arrow that points up.
package arch
