package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"lunar/appliance/api"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"lunarctl": main}) }

// TestScripts runs testdata/*.txtar. Each has a node on $LUNAR_SOCKET that answers "METHOD /path"
// with the file node/METHOD_path ('/' written as '_'), or with an error if there is none, and
// appends every request to the file requests.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: startNode, RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exitcode": exitCode}})
}

// exitCode runs a command and compares its exit code: exitcode N COMMAND...
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if err != nil {
		if _, e := fmt.Sscanf(err.Error(), "exit status %d", &code); e != nil {
			ts.Fatalf("%v", err)
		}
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func startNode(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "lunarctl")
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "s")
	env.Setenv("LUNAR_SOCKET", socket)
	env.Setenv("TZ", "UTC")
	env.Setenv("PATH_OF_LUNARCTL", filepath.SplitList(env.Getenv("PATH"))[0])
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: &node{dir: env.WorkDir}}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	env.Defer(func() {
		_ = server.Close()
		wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return nil
}

// node answers from files.
type node struct {
	mu  sync.Mutex // guards the file requests
	dir string
}

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	n.note(strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body)))
	answer, err := os.ReadFile(filepath.Join(n.dir, "node", r.Method+strings.ReplaceAll(r.URL.Path, "/", "_")))
	if err != nil {
		w.WriteHeader(http.StatusPreconditionFailed)
		_ = json.NewEncoder(w).Encode(api.Errorf(api.Refused, "no file for %s", r.URL.Path).WithHint("write one"))
		return
	}
	_, _ = w.Write(answer)
}

func (n *node) note(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(n.dir, "requests"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	_, _ = fmt.Fprintln(f, line)
	_ = f.Close()
}
