package diskfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

const program = "qemu-img"

// Tool is qemu-img on this machine.
type Tool struct{ path string }

// Find finds qemu-img.
func Find() (Tool, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return Tool{}, api.Errorf(api.Unavailable, "%s is not installed on this machine", program).
			WithHint("install it: apt install qemu-utils (Fedora, SUSE and their kin: the package qemu-img or qemu-tools)")
	}
	return Tool{path}, nil
}

// maxMessage bounds what qemu-img is quoted with.
const maxMessage = 600

// failure is qemu-img's own words, and how it ended.
type failure struct {
	code  int
	words string
}

func (f *failure) Error() string { return f.words }

// do runs qemu-img, which may open what a allows, and returns its output. It ends with ctx, and with this process.
func (t Tool) do(ctx context.Context, a allowed, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, t.path, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err := run(cmd, a)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &exit):
		return out.Bytes(), &failure{exit.ExitCode(), saying(words.String(), exit)}
	case err != nil:
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return out.Bytes(), nil
}

// saying is qemu-img's message in one line, its first lines if there are many.
func saying(words string, exit *exec.ExitError) string {
	var lines []string
	for line := range strings.Lines(words) {
		if line = strings.TrimPrefix(strings.TrimSpace(line), program+": "); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return exit.String()
	}
	text := strings.Join(lines[:min(len(lines), 3)], "; ")
	return text[:min(len(text), maxMessage)]
}

// node describes a source to qemu-img, by JSON, so that nothing in a path is taken for anything else. No file is
// looked for behind it.
func (s *Source) node() string {
	protocol := "file"
	if s.Device {
		protocol = "host_device"
	}
	n := map[string]any{
		"driver": formats[s.Format].driver,
		"file":   map[string]any{"driver": protocol, "filename": s.Path, "read-only": true},
	}
	if s.Format == QCOW2 || s.Format == VMDK {
		n["backing"] = nil
	}
	text, _ := json.Marshal(n) //nolint:errchkjson // strings and nil
	return "json:" + string(text)
}

func (s *Source) allowed() allowed {
	access := uint64(mayRead)
	if s.Device {
		access |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return allowed{s.Path: access}
}

// Extent is how large an image is.
type Extent struct {
	Virtual int64 // bytes that a guest sees
	Data    int64 // bytes of them that are not holes
}

// measured is what `qemu-img measure` says of a copy in some format.
type measured struct {
	Required int64 `json:"required"`
	Whole    int64 `json:"fully-allocated"`
}

func (t Tool) measure(ctx context.Context, s *Source, as Format) (m measured, err error) {
	out, err := t.do(ctx, s.allowed(), "measure", "--output=json", "-O", formats[as].driver, s.node())
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	return m, err
}

// Measure tells how large the image in a file is.
func (t Tool) Measure(ctx context.Context, s Source) (Extent, error) {
	plain, err := t.measure(ctx, &s, Raw)
	if err != nil {
		return Extent{}, s.unusable(err)
	}
	// Of a raw copy qemu-img tells the size alone; a qcow2 has its metadata whether or not it is full.
	counted, err := t.measure(ctx, &s, QCOW2)
	if err != nil {
		return Extent{}, s.unusable(err)
	}
	data := plain.Whole - (counted.Whole - counted.Required)
	return Extent{plain.Whole, max(0, min(data, plain.Whole))}, nil
}

// The exit codes of `qemu-img check` that are no reason to refuse.
const (
	checkLeaks       = 3
	checkUnsupported = 63 // the format knows no check: raw, VHD
)

// Check refuses a file that is damaged, or was cut off: qemu-img would read zeroes where a qcow2 or a VMDK ends too
// early, and say nothing.
func (t Tool) Check(ctx context.Context, s Source) error {
	_, err := t.do(ctx, s.allowed(), "check", s.node())
	var f *failure
	if err == nil || errors.As(err, &f) && (f.code == checkLeaks || f.code == checkUnsupported) {
		return nil
	}
	return s.unusable(err)
}

// unusable explains why a source cannot be read.
func (s *Source) unusable(err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	return damaged(s.Path, s.Format, f.words)
}

// Endpoint is an image that lunard serves by NBD.
type Endpoint struct{ Socket, Name string }

// Import writes what s holds to an image that is as large at least, and reads as zeroes everywhere.
func (t Tool) Import(ctx context.Context, s Source, to Endpoint) error {
	escaped := strings.NewReplacer(",", ",,")
	target := "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=" + escaped.Replace(to.Socket) + ",file.export=" + escaped.Replace(to.Name)
	_, err := t.do(ctx, s.allowed(), "convert", "-n", "--target-is-zero", "-S", "4k", s.node(), "--target-image-opts", target)
	return explained(err, "%s was not imported", s.Path)
}

func explained(err error, format string, args ...any) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	return api.Errorf(api.Failed, format+": %s", append(args, f.words)...)
}

// Export writes an image to a new file; it appears whole or not at all. With force it takes the place of one that
// is there.
func (t Tool) Export(ctx context.Context, from Endpoint, path string, f Format, force bool) (err error) {
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if err := Absent(path, force); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.part")
	if err != nil {
		return unwritable(path, err)
	}
	defer func() {
		err = errors.Join(err, part.Close())
		if err != nil {
			_ = os.Remove(part.Name())
		}
	}()
	if err := t.write(ctx, from, part.Name(), f); err != nil {
		return explained(err, "%s was not written", path)
	}
	if err := part.Sync(); err != nil {
		return unwritable(path, err)
	}
	return place(part.Name(), path, force)
}

// Absent refuses a path at which a file is, or, with force, anything but a file.
func Absent(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return unwritable(path, err)
	case !info.Mode().IsRegular():
		return api.Errorf(api.Invalid, "%s is there, and is no file", path).WithHint("give the path of a new file")
	case !force:
		return api.Errorf(api.Exists, "%s is there already", path).WithHint("--force replaces it")
	}
	return nil
}

func unwritable(path string, err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		err = e.Err
	}
	return api.Errorf(api.Failed, "%s cannot be written: %v", path, err)
}

func (t Tool) write(ctx context.Context, from Endpoint, path string, f Format) error {
	node, _ := json.Marshal(map[string]any{ //nolint:errchkjson // strings
		"driver": "raw",
		"file":   map[string]any{"driver": "nbd", "server": map[string]any{"type": "unix", "path": from.Socket}, "export": from.Name},
	})
	args := []string{"convert", "-O", formats[f].driver}
	if o := formats[f].options; o != "" {
		args = append(args, "-o", o)
	}
	_, err := t.do(ctx, allowed{path: mayWrite}, append(args, "json:"+string(node), path)...)
	return err
}

// place gives a whole file its name, durably.
func place(part, path string, force bool) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}
	if err := unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, path, flags); err != nil {
		return unwritable(path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return unwritable(path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
