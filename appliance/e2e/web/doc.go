// Package web looks at the console with a real browser on a real cluster: `make web-test` runs it, and leaves the pictures
// of docs/web.md.
package web
