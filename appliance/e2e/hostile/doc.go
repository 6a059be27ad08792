// Package hostile measures what hostile connections cost those that do their work: its test serves a
// LUN to 800 sessions that read, and sets 200 connections from other addresses on the same portal,
// which are slow, silent, half-open, send garbage, or come and go. The figures are in
// appliance/docs/iscsi.md.
package hostile
