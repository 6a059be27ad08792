// Package config reads a node's configuration file (TOML), fills in the defaults and checks it.
//
// The caller loads once at start and treats the Config as read-only afterwards. Every error that
// Load returns is an *Error: it names the file, the line if there is one, and what to do.
package config
