// Package api is the control API of a node: the requests, the answers, the errors, and a client.
//
// It is HTTP with JSON on the node's unix socket. The caller gives each call a context with a
// deadline; errors are *Error, whose Code says what kind of refusal it is and whose Hint says what
// to do.
package api
