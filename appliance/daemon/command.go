package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/config"
	"lunar/appliance/fence/guard"
	"lunar/appliance/hook"
)

// The exit codes of lunard.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78 // EX_CONFIG: to be started again is of no use
)

var errUsage = errors.New("wrong usage")

// options are lunard's command line.
type options struct {
	config         string
	configWasGiven bool
	state, socket  string
	check, version bool
	restore        string
	force, leave   bool
	accept         bool
}

// Command runs lunard with its arguments until SIGTERM or SIGINT, and returns its exit code. The
// second signal makes the stop quick.
func Command(args []string, stdout, stderr io.Writer) int {
	guard.Main() // returns, unless this process is the guard
	hook.Main()  // the same
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case o.version:
		v := api.BuildVersion()
		_, _ = fmt.Fprintln(stdout, "lunard", v.Version, v.Commit, v.Go)
		return exitOK
	}
	c, err := o.load()
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "lunard:", err)
		if o.check || o.leave || o.restore != "" {
			return exitFailed
		}
		return exitConfig
	}
	if o.check {
		_, _ = fmt.Fprintln(stdout, "the configuration is valid")
		return exitOK
	}
	if o.leave {
		return leaveOffLine(c, stdout, stderr)
	}
	if o.accept {
		return acceptDatabase(context.Background(), c, stdout, stderr)
	}
	if o.restore != "" {
		return restoreFile(context.Background(), c, o.restore, o.force, stdout, stderr)
	}
	if err := run(c, logger(c.Log, c.Node.Name, stderr)); err != nil {
		_, _ = fmt.Fprintln(stderr, "lunard:", err)
		return exitFailed
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("lunard", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.config, "config", config.DefaultPath, "configuration `FILE`")
	f.StringVar(&o.state, "state-dir", "", "state `DIRECTORY`, in the place of the configured one")
	f.StringVar(&o.socket, "socket", "", "`PATH` of the control API's socket, in the place of the configured one")
	f.BoolVar(&o.check, "check", false, "check the configuration and exit")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	f.StringVar(&o.restore, "restore", "", "put a saved cluster database `FILE` in the place of this node's, and exit; see lunarctl cluster restore")
	f.BoolVar(&o.leave, "leave", false, "forget the cluster, which has evicted this node, and exit; see lunarctl cluster leave")
	f.BoolVar(&o.accept, "accept-database", false, "after the external etcd of cluster.endpoints was put back to an older state, with no lunard of the cluster running: accept that state, and exit; on one node")
	f.BoolVar(&o.force, "force", false, "with --restore: over the database of another cluster, or of a node in no cluster")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	f.Visit(func(g *flag.Flag) { o.configWasGiven = o.configWasGiven || g.Name == "config" })
	if f.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "lunard: unexpected argument %q\n", f.Arg(0))
		f.Usage()
		return o, errUsage
	}
	return o, nil
}

// load reads the configuration; the default file may be missing, one that was named may not.
func (o *options) load() (config.Config, error) {
	c, err := config.Load(o.config, !o.configWasGiven)
	if err != nil {
		return c, err
	}
	if o.state != "" {
		c.StateDir = o.state
	}
	if o.socket != "" {
		c.Socket = o.socket
	}
	if bad := c.Validate(); bad != nil {
		bad.File = "command line"
		return c, bad
	}
	return c, nil
}

// logger writes to w, and to the journal itself where that is what w leads to.
func logger(l config.Log, node string, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: l.SlogLevel()}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	if toJournal, err := journal.StderrIsJournalStream(); err == nil && toJournal && w == os.Stderr {
		return slog.New(&journalHandler{
			level: l.SlogLevel(), send: journal.Send, unit: os.Getenv(volumeUnit), fields: map[string]string{"NODE": node},
		})
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// run serves until the first signal and stops until the second.
func run(c config.Config, log *slog.Logger) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	ctx, hurry := context.WithCancel(context.Background())
	defer hurry()
	stop := make(chan struct{})
	ended := make(chan struct{})
	defer func() { hurry(); <-ended }()
	go func() {
		defer close(ended)
		awaitSignals(ctx, signals, stop, hurry, log)
	}()
	d, err := Open(ctx, c, log)
	if err != nil {
		return err
	}
	d.Ready()
	<-stop
	return d.Close(ctx)
}

// awaitSignals closes stop at the first signal and hurries at the second.
func awaitSignals(ctx context.Context, signals <-chan os.Signal, stop chan<- struct{}, hurry func(), log *slog.Logger) {
	select {
	case s := <-signals:
		log.Info("stopping; a second signal makes it quick", "signal", s.String())
		close(stop)
	case <-ctx.Done():
		return
	}
	select {
	case s := <-signals:
		log.Warn("stopping quickly", "signal", s.String())
		hurry()
	case <-ctx.Done():
	}
}
