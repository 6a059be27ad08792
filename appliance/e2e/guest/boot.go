package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
)

// BootBytes is the size of a LUN that the guest's disk fits in.
const BootBytes = 640 << 20

// Where the root file system lies on the guest's disk (build.sh), and what the guest writes there.
const (
	rootOffsetMiB = 1 + 48
	rootMiB       = 448
	writtenFiles  = 60
)

// writeScript fills /data with files, some rewritten, removed or trimmed away, and proves them against their sums.
const writeScript = `set -e
mkdir /data
cd /data
for i in $(seq %d); do head -c $((i * i * 1009)) /dev/urandom >file$i; done
head -c 8388608 /dev/urandom >once; sync; rm once; fstrim -v /
for i in 3 5 7; do dd if=/dev/urandom of=file5$i bs=4k count=20 seek=3 conv=notrunc,fsync status=none; done
sha256sum file* >sums
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum --quiet -c sums
echo "root on $(findmnt -no SOURCE /), $(wc -l <sums) files, $(du -sm . | cut -f1) MiB"`

// Boot writes the guest's disk to the LUN at the URL (at least BootBytes large), boots a machine wholly from it through
// QEMU's libiscsi driver, lets it write files and power off, boots it again to compare them, and at last checks file
// system and files on the host. It changes the LUN.
func (s Scenario) Boot(ctx context.Context, url string) error {
	steps := []struct {
		name string
		do   func(context.Context, string) (string, error)
	}{
		{"qemu-img convert onto the LUN", s.writeDisk},
		{"boot, write, power off", func(ctx context.Context, url string) (string, error) {
			return s.session(ctx, url, fmt.Sprintf(writeScript, writtenFiles))
		}},
		{"boot again, compare", func(ctx context.Context, url string) (string, error) {
			return s.session(ctx, url, `cd /data && sha256sum --quiet -c sums && echo "$(wc -l <sums) files as written"`)
		}},
		{"check on the host", s.checkDisk},
	}
	for _, step := range steps {
		began := time.Now()
		what, err := step.do(ctx, url)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		_, _ = fmt.Fprintf(s.Log, "ok   %5.1fs %s: %s\n", time.Since(began).Seconds(), step.name, what)
	}
	return nil
}

func (s Scenario) writeDisk(ctx context.Context, url string) (string, error) {
	_, err := lab.Run(ctx, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", s.Image.Disk, url)
	return url, err
}

// session boots from the URL, runs the script and powers off.
func (s Scenario) session(ctx context.Context, url, script string) (output string, err error) {
	m, err := StartMachine(ctx, s.Lab, MachineOptions{Drives: []Drive{{File: url}}})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	status, output, err := m.Run(ctx, 5*time.Minute, script)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d: %s\n%s", status, output, m.lastWords())
	}
	if err != nil {
		return output, err
	}
	return normalise(output, nil), m.PowerOff(ctx)
}

// checkDisk reads the LUN back and checks the root file system and each file's sum without mounting it.
func (s Scenario) checkDisk(ctx context.Context, url string) (string, error) {
	disk, root, files := s.Lab.Path("read-back.raw"), s.Lab.Path("read-back.ext4"), s.Lab.Path("read-back")
	defer func() { _ = errors.Join(os.Remove(disk), os.Remove(root), os.RemoveAll(files)) }()
	if err := os.MkdirAll(files, 0o755); err != nil {
		return "", err
	}
	for _, command := range [][]string{
		{"qemu-img", "convert", "-f", "raw", "-O", "raw", url, disk},
		{"dd", "if=" + disk, "of=" + root, "bs=1M", fmt.Sprintf("skip=%d", rootOffsetMiB), fmt.Sprintf("count=%d", rootMiB), "conv=sparse", "status=none"},
		{"e2fsck", "-f", "-n", root},
		{"debugfs", "-R", "rdump /data " + files, root},
	} {
		if _, err := lab.Run(ctx, command...); err != nil {
			return "", err
		}
	}
	return compareFiles(ctx, filepath.Join(files, "data"))
}

func compareFiles(ctx context.Context, dir string) (string, error) {
	sums, err := os.ReadFile(filepath.Join(dir, "sums"))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(sums), "\n"); n != writtenFiles {
		return "", fmt.Errorf("%d files are listed, the guest wrote %d", n, writtenFiles)
	}
	_, err = lab.Run(ctx, "env", "-C", dir, "sha256sum", "--quiet", "-c", "sums")
	return fmt.Sprintf("e2fsck clean, %d files as written", writtenFiles), err
}
