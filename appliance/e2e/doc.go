// Package e2e holds the end-to-end tests: real initiators against a real lunard over a real file system
// on a loop device. They need root and the packages that `appliance/e2e/packages.sh client` installs,
// and skip with the reason otherwise. LUNAR_BIN names the folder of lunard and lunarctl; without it they
// are built first.
package e2e
