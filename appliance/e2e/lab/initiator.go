package lab

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

// RandomFile makes a sparse file of size bytes in which regions of 4 MiB, evenly spread and off the
// 1 MiB grid, hold random data.
func (l *Lab) RandomFile(name string, size int64, regions int) (string, error) {
	const region, skew = 4 << 20, 12 << 10
	path := l.Path(name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // Sync has told
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	stride := size / int64(regions)
	if stride < region+skew {
		return "", fmt.Errorf("%d regions do not fit into %d bytes", regions, size)
	}
	for i := range int64(regions) {
		to := io.NewOffsetWriter(f, i*stride+skew)
		if _, err := io.CopyN(to, rand.Reader, region); err != nil {
			return "", err
		}
	}
	return path, f.Sync()
}

// Upload writes a raw file to a LUN with QEMU's initiator and flushes it; holes are not written.
func Upload(ctx context.Context, path, url string) error {
	_, err := Run(ctx, "qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", path, url)
	return err
}

// Download reads a whole LUN with QEMU's initiator into a raw file.
func Download(ctx context.Context, url, path string) error {
	_, err := Run(ctx, "qemu-img", "convert", "-T", "none", "-f", "raw", "-O", "raw", url, path)
	return err
}

// Equal fails unless a LUN reads as the raw file says, byte by byte, through QEMU's initiator.
func Equal(ctx context.Context, path, url string) error {
	_, err := Run(ctx, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, url)
	return err
}

// QemuIO runs qemu-io commands against a LUN.
func QemuIO(ctx context.Context, url string, commands ...string) (string, error) {
	argv := []string{"qemu-io", "-f", "raw"}
	for _, c := range commands {
		argv = append(argv, "-c", c)
	}
	return Run(ctx, append(argv, url)...)
}

// Checksum is the SHA-256 of a file, in hexadecimal.
func Checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
