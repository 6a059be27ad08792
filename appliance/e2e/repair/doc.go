// Package repair tests the maintenance of volumes in use: real clusters, verified writers, real damage. Tests only.
package repair
