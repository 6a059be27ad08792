package coordinator

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostileTree is a folder, opened as a volume's root is, beside a folder with a secret that nobody may reach from there.
func hostileTree(t *testing.T) (m *mount, root string) {
	t.Helper()
	top := t.TempDir()
	root = filepath.Join(top, "volume")
	for _, dir := range []string{"outside", "volume/dir/sub", "volume/mounted"} {
		check(t, os.MkdirAll(filepath.Join(top, dir), 0o700))
	}
	for _, file := range []string{"outside/secret", "volume/file", "volume/dir/sub/file"} {
		check(t, os.WriteFile(filepath.Join(top, file), []byte(file), 0o600))
	}
	tree, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	id, err := mountOf(int(tree.Fd()))
	check(t, err)
	m = &mount{tree: tree, id: id}
	t.Cleanup(func() { check(t, tree.Close()) })
	return m, root
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBeneath has no path lead out of the volume.
func TestBeneath(t *testing.T) {
	m, root := hostileTree(t)
	outside := filepath.Join(filepath.Dir(root), "outside")
	for link, to := range map[string]string{
		"absolute": outside, "relative": "../outside", "inside": "dir", "toFile": "file", "loop": "loop", "proc": "/proc/self/root", "dir/up": "../../outside",
	} {
		check(t, os.Symlink(to, filepath.Join(root, link)))
	}
	for path, want := range map[string]error{
		"file": nil, "dir/sub/file": nil, ".": nil, "dir": nil,
		"..": unix.EXDEV, "../outside/secret": unix.EXDEV, "dir/../../outside/secret": unix.EXDEV, "dir/..": unix.EXDEV,
		"/etc/passwd": unix.EXDEV, "dir//sub": unix.EXDEV, "": unix.EXDEV, "dir/": unix.EXDEV,
		"absolute/secret": unix.ELOOP, "relative/secret": unix.ELOOP, "inside/sub/file": unix.ELOOP, "toFile": unix.ELOOP, "loop": unix.ELOOP,
		"loop/x": unix.ELOOP, "proc/etc": unix.ELOOP, "dir/up/secret": unix.ELOOP, "inside": unix.ELOOP,
		"file/x": unix.ENOTDIR, "none": unix.ENOENT, "dir/none/x": unix.ENOENT,
	} {
		for _, flags := range []uint64{unix.O_RDONLY, unix.O_RDONLY | unix.O_DIRECTORY} {
			f, err := m.open(path, flags, 0)
			if err == nil {
				check(t, f.Close())
			}
			want := want
			if flags&unix.O_DIRECTORY != 0 && want == nil && filepath.Base(path) == "file" {
				want = unix.ENOTDIR
			}
			if !errors.Is(err, want) {
				t.Errorf("open %q with %x: %v, want %v", path, flags, err, want)
			}
		}
	}
	if _, err := m.open("absolute/new", unix.O_CREAT|unix.O_RDWR, 0o600); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a file was made outside: %v", err)
	}
	if _, err := m.open("relative", unix.O_TMPFILE|unix.O_RDWR, 0o600); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a file was made outside: %v", err)
	}
	f, err := m.open("toFile", unix.O_PATH|unix.O_NOFOLLOW, 0) // the link itself, to look at it
	check(t, err)
	check(t, f.Close())
}

// TestBeneathOtherMount has a mount on the volume's tree not be entered, be it of the same file system.
func TestBeneathOtherMount(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	m, root := hostileTree(t)
	for _, dir := range []string{"mounted", "dir"} {
		at, from := filepath.Join(root, dir), filepath.Dir(root)+"/outside"
		if out, err := exec.Command("mount", "--bind", from, at).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v %s", err, out)
		}
		t.Cleanup(func() { check(t, unix.Unmount(at, unix.MNT_DETACH)) })
	}
	for _, path := range []string{"mounted", "mounted/secret", "dir/secret"} {
		if f, err := m.open(path, unix.O_RDONLY, 0); !errors.Is(err, unix.EXDEV) {
			t.Errorf("open %s: %v", path, errors.Join(err, f.Close()))
		}
	}
}

// TestBeneathRace swaps a folder for a link to the outside, again and again, while files in it are opened.
func TestBeneathRace(t *testing.T) {
	m, root := hostileTree(t)
	check(t, os.WriteFile(root+"/dir/secret", []byte("ours"), 0o600))
	check(t, os.Symlink("../outside", root+"/link"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, root+"/dir", unix.AT_FDCWD, root+"/link", unix.RENAME_EXCHANGE)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	opened, refused := 0, 0
	for end := time.Now().Add(10 * time.Second); opened < 200 || refused < 200; {
		if time.Now().After(end) {
			t.Fatalf("%d were opened, %d refused", opened, refused)
		}
		f, err := m.open("dir/secret", unix.O_RDONLY, 0)
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			refused++
			continue
		}
		check(t, err)
		opened++
		text := make([]byte, 8)
		n, err := f.Read(text)
		check(t, errors.Join(err, f.Close()))
		if string(text[:n]) != "ours" {
			t.Fatalf("it led outside: %q", text[:n])
		}
	}
}
