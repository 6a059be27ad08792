// Package image boots virtual machines from the appliance's image and manages them as an operator would: by systemctl, by
// lunarctl, on the console, and by pulling plugs.
//
// Its tests are those of `make image-test`, which builds the image; elsewhere they are skipped. QEMU runs them in software
// emulation, so each bound is generous.
package image
