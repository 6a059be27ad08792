package coordinator

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asTool, set in the environment, makes the test a process that runs a tool.
const asTool = "LUNAR_TEST_TOOL"

// A tool is not left behind by a process that is killed: what it would write comes after the next mount.
func TestToolDiesWithItsProcess(t *testing.T) {
	if os.Getenv(asTool) != "" {
		hang := tool{args: []string{"sh", "-c", "echo tool $$; exec sleep 1000"}}
		_, _ = hang.run(context.Background(), "device", func(line string) { fmt.Println(line) })
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), asTool+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "tool ")))
	if err != nil {
		t.Fatal(err)
	}
	tool, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tool)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(tool), Events: unix.POLLIN}}
	for until := time.Now().Add(time.Minute); ; {
		n, err := unix.Poll(poll, 1000)
		if n > 0 {
			break
		}
		if err != nil && err != unix.EINTR || time.Now().After(until) {
			_ = unix.Kill(pid, unix.SIGKILL)
			t.Fatal("the tool outlives its process: ", err)
		}
	}
	_ = cmd.Wait()
}
