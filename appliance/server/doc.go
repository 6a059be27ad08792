// Package server answers the control API and gives out Prometheus metrics.
//
// It knows the node's parts only by the small interfaces that it declares; the caller implements
// them, serves Handler on the unix socket and Metrics on a TCP address, and shuts both servers down.
package server
