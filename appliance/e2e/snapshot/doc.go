// Package snapshot tests snapshots of a running cluster: real initiators write through three nodes meanwhile.
package snapshot
