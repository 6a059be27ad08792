package guest

import (
	"os"
	"path/filepath"
	"testing"
)

// QEMU runs in its lab's folder, so an image in a folder that was named from here must not be looked for there.
func TestImageOfRelativeFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("cache", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("cache/cmdline", []byte("console=hvc0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	im, err := openImage("cache")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{im.Disk, im.Kernel, im.Initrd} {
		if !filepath.IsAbs(path) {
			t.Errorf("%s is relative", path)
		}
	}
}
