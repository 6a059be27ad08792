package cluster

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

const (
	fioTime  = 8 * time.Second // longer than the faults of TestFioVerify take on an idle machine
	fioShare = 48 * mib        // of the image, for each node's fio
	// fioJobs are processes with one request each: QEMU 7.2's FUSE export fails fio's verification of a plain file
	// when a process has several.
	fioJobs = 4
)

// TestFioVerify has fio write and verify through every node's target, by QEMU's initiator, while the volume moves, a
// path is cut, and the coordinator is killed: fio sees no error. Half of what it writes was a hole.
func TestFioVerify(t *testing.T) {
	b := newBench(t, 3)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	until := time.Now().Add(fioTime)
	var all sync.WaitGroup
	for i, n := range b.Nodes {
		file := b.fuse(n)
		all.Go(func() { b.fio(file, n.Name, int64(i)*fioShare, until) })
	}
	check(t, b.Move(b.ctx, b.Nodes[1]))
	victim := b.Nodes[2]
	check(t, victim.CutPath())
	check(t, victim.AwaitState(b.ctx, api.Redirected, 5*time.Second))
	check(t, victim.MendPath())
	check(t, victim.AwaitState(b.ctx, api.Direct, 5*time.Second))
	dead, err := b.Coordinator(b.ctx)
	check(t, err)
	dead.Kill()
	next := b.successor(dead)
	check(t, dead.Restart(b.ctx))
	t.Logf("moved to %s, path of %s cut and mended, %s killed, %s took over", b.Nodes[1].Name, victim.Name, dead.Name, next.Name)
	all.Wait()
	for _, p := range b.exports {
		check(t, p.Stop())
	}
	b.clean()
}

// fuse makes a file of the LUN at a node's portal.
func (b *bench) fuse(n *lab.ClusterNode) string {
	b.t.Helper()
	file := b.lab.Path("fuse-" + n.Name)
	check(b.t, os.WriteFile(file, nil, 0o600))
	host, port, err := net.SplitHostPort(n.Portal())
	check(b.t, err)
	p, err := b.lab.Start("qemu-storage-daemon",
		"--blockdev", fmt.Sprintf("driver=raw,node-name=lun,file.driver=iscsi,file.transport=tcp,file.lun=0,file.target=%s,file.portal=%s:%s,cache.direct=on", lab.ClusterTarget, host, port),
		"--export", "type=fuse,id=fuse,node-name=lun,writable=on,mountpoint="+file)
	check(b.t, err)
	b.exports = append(b.exports, p)
	check(b.t, lab.Poll(20*time.Second, func() error {
		info, err := os.Stat(file)
		if err == nil && info.Size() != imageSize {
			err = fmt.Errorf("%s has %d bytes, it is not the LUN yet", file, info.Size())
		}
		return err
	}))
	return file
}

// fio writes and verifies its share over and over, each time other data, until the time is up.
func (b *bench) fio(file, name string, offset int64, until time.Time) {
	for round := 1; round == 1 || time.Now().Before(until); round++ {
		cmd := exec.CommandContext(b.ctx, "fio", "--name="+name, "--filename="+file, "--rw=randrw", "--bsrange=4k-64k",
			fmt.Sprintf("--offset=%d", offset), fmt.Sprintf("--size=%d", fioShare/fioJobs), fmt.Sprintf("--offset_increment=%d", fioShare/fioJobs),
			fmt.Sprintf("--numjobs=%d", fioJobs), "--ioengine=psync", "--direct=1",
			"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--end_fsync=1", fmt.Sprintf("--randseed=%d", round),
			"--verify_state_save=0", "--output-format=terse", "--group_reporting")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.t.Errorf("fio through %s, round %d: %v\n%s", name, round, err, strings.TrimSpace(string(out)))
			return
		}
	}
}
