package guest

import (
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed image
var builder embed.FS

// Image is a guest's disk and what a direct boot of it needs.
type Image struct {
	Disk    string // raw, MBR: FAT with SYSLINUX, ext4 root; boots by itself under SeaBIOS
	Kernel  string
	Initrd  string
	Cmdline string
}

// BuildImage makes the guest's image in the cache folder, or finds it there; log gets the builder's messages.
func BuildImage(ctx context.Context, cache string, log io.Writer) (Image, error) {
	scripts, err := unpackBuilder()
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	defer func() { _ = os.RemoveAll(scripts) }()
	build := exec.CommandContext(ctx, "bash", filepath.Join(scripts, "build.sh"), cache)
	build.Stderr = log
	build.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	build.Cancel = func() error { return syscall.Kill(-build.Process.Pid, syscall.SIGKILL) }
	out, err := build.Output()
	if err != nil {
		return Image{}, fmt.Errorf("guest image: build.sh: %w", err)
	}
	return openImage(strings.TrimSpace(string(out)))
}

func unpackBuilder() (string, error) {
	files, err := fs.Sub(builder, "image")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "guest-image.")
	if err != nil {
		return "", err
	}
	return dir, os.CopyFS(dir, files)
}

// openImage names the image's files by absolute paths: a machine runs in its lab's folder.
func openImage(dir string) (Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	return Image{
		Disk:    filepath.Join(dir, "disk.raw"),
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "initrd"),
		Cmdline: strings.TrimSpace(string(cmdline)),
	}, nil
}
