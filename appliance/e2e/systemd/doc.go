// Package systemd tests the Debian package under a real systemd: a minimal Debian whose PID 1 is systemd, in namespaces
// (systemd-nspawn), where the package is installed, managed by systemctl, upgraded and purged. `make systemd-test` builds
// what it needs; without it the tests are skipped.
package systemd
