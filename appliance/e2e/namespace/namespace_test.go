package namespace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/e2e/lab"
)

// TestSameEverywhere uses one image by the files of all nodes and by iSCSI, and has each see what the others do.
func TestSameEverywhere(t *testing.T) {
	b := newBench(t)
	coordinator, others := b.roles()
	b.sameData(coordinator, others)
	b.sameNames(coordinator, others)
	b.busy(others)
	b.diskImages(others)
	b.clean()
}

// sameData writes through one node, and reads through the others and by iSCSI.
func (b *bench) sameData(coordinator *lab.ClusterNode, others []*lab.ClusterNode) {
	b.t.Helper()
	source, err := b.lab.RandomFile("source.raw", imageSize, 4)
	check(b.t, err)
	b.run("dd", "if="+source, "of="+b.at(others[0], "disk.img"), "bs=1M", "oflag=direct", "conv=notrunc,fsync", "status=none")
	for _, n := range b.Nodes {
		b.run("cmp", source, b.at(n, "disk.img"))
		check(b.t, lab.Equal(b.ctx, source, n.URL(lab.ClusterTarget)))
	}
	_, err = lab.QemuIO(b.ctx, others[1].URL(lab.ClusterTarget), "write -P 0x5a 8M 64k")
	check(b.t, err)
	b.run("qemu-io", "-f", "raw", "-t", "none", "-c", "read -P 0x5a 8M 64k", b.at(coordinator, "disk.img"))
	b.run("qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 0x3c 9M 1M", "-c", "discard 12M 1M", b.at(coordinator, "disk.img"))
	_, err = lab.QemuIO(b.ctx, others[0].URL(lab.ClusterTarget), "read -P 0x3c 9M 1M", "read -P 0 12M 1M")
	check(b.t, err)
}

func (b *bench) sameNames(coordinator *lab.ClusterNode, others []*lab.ClusterNode) {
	b.t.Helper()
	one, two := others[0], others[1]
	for round := range 3 {
		name := fmt.Sprintf("new-%d", round)
		check(b.t, os.WriteFile(b.at(one, name), nil, 0o600))
		b.size(two, name, 0)
		check(b.t, unix.Truncate(b.at(two, name), 4*mib))
		b.size(one, name, 4*mib)
		b.size(coordinator, name, 4*mib)
		check(b.t, unix.Rename(b.at(coordinator, name), b.at(coordinator, name+".img")))
		b.size(one, name, -1)
		b.size(two, name+".img", 4*mib)
		check(b.t, unix.Truncate(b.at(one, name+".img"), mib))
		b.size(two, name+".img", mib)
		check(b.t, unix.Unlink(b.at(two, name+".img")))
		b.size(one, name+".img", -1)
		b.listed(coordinator, "disk.img")
	}
}

// size wants a file to have it at once; -1: there is none.
func (b *bench) size(n *lab.ClusterNode, path string, want int64) {
	b.t.Helper()
	got := int64(-1)
	info, err := os.Stat(b.at(n, path))
	if err == nil {
		got = info.Size()
	} else if !errors.Is(err, os.ErrNotExist) {
		b.t.Error(err)
	}
	if got != want {
		b.t.Errorf("node %s: %s has size %d, want %d", n.Name, path, got, want)
	}
}

func (b *bench) listed(n *lab.ClusterNode, want ...string) {
	b.t.Helper()
	entries, err := os.ReadDir(b.at(n, ""))
	check(b.t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("node %s lists %v, want %v", n.Name, got, want)
	}
}

// busy wants what is open elsewhere, or exported, to stay as it is.
func (b *bench) busy(others []*lab.ClusterNode) {
	b.t.Helper()
	one, two := others[0], others[1]
	for name, err := range map[string]error{
		"delete": unix.Unlink(b.at(one, "disk.img")), "rename": unix.Rename(b.at(one, "disk.img"), b.at(one, "x")),
		"shrink": unix.Truncate(b.at(one, "disk.img"), mib),
	} {
		if !errors.Is(err, unix.EBUSY) {
			b.t.Errorf("%s what a LUN maps: %v", name, err)
		}
	}
	check(b.t, os.WriteFile(b.at(one, "open"), make([]byte, mib), 0o600))
	f, err := os.Open(b.at(one, "open"))
	check(b.t, err)
	for name, err := range map[string]error{"delete": unix.Unlink(b.at(two, "open")), "shrink": unix.Truncate(b.at(two, "open"), 512)} {
		if !errors.Is(err, unix.EBUSY) {
			b.t.Errorf("%s what another node has open: %v", name, err)
		}
	}
	check(b.t, f.Close())
	check(b.t, unix.Unlink(b.at(two, "open")))
}

// diskImages has QEMU's tools make, fill and check images there, of its own format too.
func (b *bench) diskImages(others []*lab.ClusterNode) {
	b.t.Helper()
	one, two := others[0], others[1]
	b.run("qemu-img", "create", "-q", "-f", "raw", b.at(one, "made.raw"), "16M")
	b.run("qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 7 1M 2M", "-c", "flush", b.at(one, "made.raw"))
	b.run("qemu-io", "-f", "raw", "-t", "none", "-c", "read -P 7 1M 2M", "-c", "read -P 0 4M 1M", b.at(two, "made.raw"))
	source := b.lab.Path("source.raw")
	b.run("qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "none", source, b.at(one, "copy.raw"))
	b.run("qemu-img", "compare", "-f", "raw", "-F", "raw", "-T", "none", source, b.at(two, "copy.raw"))
	check(b.t, unix.Unlink(b.at(two, "made.raw")))
	check(b.t, unix.Unlink(b.at(two, "copy.raw")))
}

// TestCoordinatorKilled kills the coordinator below fio, which verifies: no error, nothing lost.
func TestCoordinatorKilled(t *testing.T) {
	b := newBench(t)
	coordinator, others := b.roles()
	var jobs []*exec.Cmd
	var outputs []*strings.Builder
	for i, n := range others {
		cmd := exec.CommandContext(b.ctx, "fio", "--name=verify", "--filename="+b.at(n, fmt.Sprintf("fio-%d.img", i)), "--size=32m",
			"--rw=randwrite", "--bsrange=4k-64k", "--ioengine=libaio", "--iodepth=16", "--direct=1", "--verify=crc32c", "--verify_fatal=1",
			"--end_fsync=1", "--loops=4", "--rate=24m", "--fallocate=none", "--verify_state_save=0", fmt.Sprintf("--randseed=%d", i+1))
		out := &strings.Builder{}
		cmd.Stdout, cmd.Stderr = out, out
		check(t, cmd.Start())
		jobs, outputs = append(jobs, cmd), append(outputs, out)
	}
	time.Sleep(2 * time.Second) // fio writes
	coordinator.Kill()
	next := func() error {
		now, err := others[0].API.Volumes(b.ctx)
		if err == nil && (len(now) == 0 || now[0].Coordinator == coordinator.Name || now[0].Coordinator == "") {
			err = errors.New("no other coordinator yet")
		}
		return err
	}
	check(t, lab.Poll(30*time.Second, next))
	for i, cmd := range jobs {
		if err := cmd.Wait(); err != nil {
			t.Errorf("fio at node %s: %v\n%s", others[i].Name, err, outputs[i])
		}
	}
	check(t, coordinator.Restart(b.ctx)) // and its mount
	for i, n := range others {
		name := fmt.Sprintf("fio-%d.img", i)
		b.run("cmp", b.at(n, name), b.at(coordinator, name))
	}
	b.clean()
}
